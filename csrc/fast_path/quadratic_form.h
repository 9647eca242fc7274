// quadratic_form on plain tensors of the CPU, as _quadratic_form.py has it: two nodes, each the derivative of the
// other. What is not plain goes back to Python.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/add.h>
#include <ATen/ops/mul.h>

#include "function.h"

namespace torchad_ext {
namespace {

using MaybeTensor = std::optional<at::Tensor>;

// _gradients of _quadratic_form.py, for what is not plain.
PyObject* form_gradients;

bool are_plain_on_cpu(const Tensors& xs) {
  Tensors defined;
  for (const at::Tensor& x : xs) {
    if (x.defined()) defined.push_back(x);
  }
  return defined[0].is_cpu() && are_plain(defined);
}

// An operator of csrc/quadratic_form.h.
template <class Signature>
struct Operator;
template <class Result, class... Arguments>
struct Operator<Result(Arguments...)> {
  explicit Operator(const char* name)
      : name(name), handle(c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Result(Arguments...)>()) {}

  Result operator()(Arguments... arguments) const {
    RECORD_FUNCTION(name, std::vector<c10::IValue>());
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return handle.redispatch(c10::DispatchKeySet(c10::DispatchKey::CPU), arguments...);
  }

  const char* const name;
  const c10::TypedOperatorHandle<Result(Arguments...)> handle;
};

at::Tensor readable(const at::Tensor& A) { return A.stride(-1) == 1 || A.stride(-2) == 1 ? A : A.contiguous(); }

// One application of a Function of _quadratic_form.py in the autograd graph.
struct FormNode : torch::autograd::Node {
  enum Kind { form, outer };

  FormNode(Kind kind, bool shared, size_t inputs) : kind(kind), shared(shared), inputs(inputs) {}

  std::string name() const override { return kind == form ? "QuadraticFormBackward" : "OuterBackward"; }

  // The inputs, then the outputs.
  void save(const Tensors& xs) {
    for (const at::Tensor& x : xs) saved.emplace_back(x, /*is_output=*/saved.size() >= inputs);
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& x : saved) x.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    return gradients(kind, shared, unpacked(), grads, wanted(), num_outputs());
  }

  Tensors unpacked() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Tensors xs;
    for (size_t i = 0; i < saved.size(); ++i) {
      xs.push_back(i < inputs ? saved[i].unpack() : saved[i].unpack(held(this)));
    }
    return xs;
  }

  uint64_t wanted() const {
    uint64_t mask = 0;
    for (size_t i = 0; i < num_outputs(); ++i) mask |= uint64_t(task_should_compute_output(i)) << i;
    return mask;
  }

  static variable_list gradients(Kind kind, bool shared, const Tensors& xs, const variable_list& grads, uint64_t wanted,
                                 size_t count);

  void compiled_args(dynamo::CompiledNodeArgs& args) const override {
    args.collect(uint64_t(kind));
    args.collect(shared);
    for (size_t i = 0; i < saved.size(); ++i) args.collect(saved[i], /*is_output=*/i >= inputs);
  }

  variable_list apply_with_saved(const variable_list& grads, dynamo::SwapSavedVariables& swap) override {
    for (auto& x : saved) swap.before(x);
    const Tensors xs = unpacked();
    const auto call = [kind = kind, shared = shared, wanted = wanted(), count = num_outputs()](
                          const variable_list& grads, const variable_list& xs) {
      return gradients(kind, shared, Tensors(xs.begin(), xs.end()), grads, wanted, count);
    };
    auto results = call_functional(*this, swap, grads, xs, call);
    for (auto& x : saved) swap.after(x);
    return results;
  }

  const Kind kind;
  const bool shared;  // is there one A for all x?
  const size_t inputs;
  std::vector<torch::autograd::SavedVariable> saved;
};

NodePtr make_form_node(FormNode::Kind kind, bool shared, const Tensors& inputs) {
  const NodePtr node = make_node<FormNode>(kind, shared, inputs.size());
  torch::autograd::edge_list edges;
  for (const at::Tensor& x : inputs) {
    edges.push_back(x.defined() ? torch::autograd::impl::gradient_edge(x) : torch::autograd::Edge());
  }
  node->set_next_edges(std::move(edges));
  return node;
}

// q and s, differentiable.
std::pair<at::Tensor, at::Tensor> value_and_product(const at::Tensor& x, const at::Tensor& A) {
  static const Operator<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&)> kernel(
      "torchad_ext::quadratic_form_and_product");
  auto [q, s] = kernel(x, readable(A));
  if (is_recorded({x, A})) {
    const NodePtr node = make_form_node(FormNode::form, A.dim() == 2, {x, A});
    torch::autograd::set_history(q, node);
    torch::autograd::set_history(s, node);
    static_cast<FormNode&>(*node).save({x, A, s});
  }
  return {q, s};
}

// (g x + h) x^T + x h^T, summed over x [count, n] if A is shared; differentiable. g or h may be undefined.
at::Tensor outer_products(const at::Tensor& x, const at::Tensor& g, const at::Tensor& h, bool shared) {
  const auto dense = [](const at::Tensor& v) { return v.defined() ? MaybeTensor(v.contiguous()) : std::nullopt; };
  static const Operator<at::Tensor(const at::Tensor&, const MaybeTensor&, const MaybeTensor&, bool)> kernel(
      "torchad_ext::quadratic_form_outer");
  const at::Tensor G = [&] {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return kernel(x.contiguous(), dense(g), dense(h), shared && x.dim() == 2);
  }();
  Tensors given{x};
  if (g.defined()) given.push_back(g);
  if (h.defined()) given.push_back(h);
  if (is_recorded(given)) {
    const NodePtr node = make_form_node(FormNode::outer, shared, {x, g, h});
    torch::autograd::set_history(G, node);
    static_cast<FormNode&>(*node).save({x, g, h});
  }
  return G;
}

at::Tensor sum(at::Tensor a, at::Tensor b) { return !a.defined() ? b : !b.defined() ? a : at::add(a, b); }

// The gradients of x and A, or of x, g and h.
variable_list FormNode::gradients(Kind kind, bool shared, const Tensors& xs, const variable_list& grads,
                                  uint64_t wanted, size_t count) {
  variable_list results(count);
  if (std::none_of(grads.begin(), grads.end(), [](const at::Tensor& g) { return g.defined(); })) return results;
  Tensors all(xs);
  all.insert(all.end(), grads.begin(), grads.end());
  if (!are_plain_on_cpu(all)) {
    return ask_python([&] {
      py::list arguments;
      for (const at::Tensor& x : all) {
        arguments.append(x.defined() ? py::reinterpret_steal<py::object>(THPVariable_Wrap(x)) : py::none());
      }
      py::list flags;
      for (size_t i = 0; i < count; ++i) flags.append(bool(wanted >> i & 1));
      const py::object found = py::handle(form_gradients)(kind == form, arguments, flags);
      size_t i = 0;
      for (const py::handle gradient : found) {
        if (!gradient.is_none()) results[i] = THPVariable_Unpack(gradient.ptr());
        ++i;
      }
      return results;
    });
  }
  const at::Tensor& x = xs[0];
  if (kind == form) {
    const at::Tensor &A = xs[1], &s = xs[2], &grad_q = grads[0], &grad_s = grads[1];
    if (wanted & 1) {
      results[0] = sum(grad_q.defined() ? at::mul(grad_q.unsqueeze(-1), s) : at::Tensor(),
                       grad_s.defined() ? value_and_product(grad_s, A).second : at::Tensor());
    }
    if (wanted & 2) results[1] = outer_products(x, grad_q, grad_s, shared);
  } else {
    const at::Tensor &g = xs[1], &h = xs[2], &grad = grads[0];
    auto [grad_g, grad_h] = value_and_product(x, grad);
    if (wanted & 1) {
      results[0] = sum(g.defined() ? at::mul(g.unsqueeze(-1), grad_h) : at::Tensor(),
                       h.defined() ? value_and_product(h, grad).second : at::Tensor());
    }
    if (wanted & 2) results[1] = grad_g;
    if (wanted & 4) results[2] = grad_h;
  }
  return results;
}

// quadratic_form(x, A): the result, or NotImplemented where the way through Python has to be taken.
PyObject* quadratic_form(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 2 || at::impl::torch_function_mode_enabled()) Py_RETURN_NOTIMPLEMENTED;
  if (!THPVariable_CheckExact(arguments[0]) || !THPVariable_CheckExact(arguments[1])) Py_RETURN_NOTIMPLEMENTED;
  const at::Tensor &x = THPVariable_Unpack(arguments[0]), &A = THPVariable_Unpack(arguments[1]);
  if (!are_plain_on_cpu({x, A}) || x.numel() == 0) Py_RETURN_NOTIMPLEMENTED;
  const auto xs = x.sizes(), As = A.sizes();
  const bool one = As.size() == 2 && (xs.size() == 1 || xs.size() == 2);
  if (!one && (xs.empty() || xs.size() > 25 || As.size() != xs.size() + 1)) Py_RETURN_NOTIMPLEMENTED;
  if (!one && !As.slice(0, xs.size()).equals(xs)) Py_RETURN_NOTIMPLEMENTED;
  if (As.back() != xs.back() || As[As.size() - 2] != xs.back()) Py_RETURN_NOTIMPLEMENTED;
  at::Tensor q;
  {
    const WithoutGil no_gil({x, A});
    static const Operator<at::Tensor(const at::Tensor&, const at::Tensor&)> kernel("torchad_ext::quadratic_form");
    q = is_recorded({x, A}) ? value_and_product(x, A).first : kernel(x, readable(A));
  }
  return THPVariable_Wrap(std::move(q));
  END_HANDLE_TH_ERRORS
}

// set_form_gradients(function)
PyObject* set_form_gradients(PyObject*, PyObject* function) {
  Py_XDECREF(std::exchange(form_gradients, Py_NewRef(function)));
  Py_RETURN_NONE;
}

}  // namespace
}  // namespace torchad_ext
