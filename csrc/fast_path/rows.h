// The call of an op on rows on plain tensors, and its node in the autograd graph.
//
// It does what _row_function.py does: a RowFunction of Python stands behind each one here.
#pragma once

#include "../rowwise.h"
#include "function.h"

namespace torchad_ext {
namespace {

std::atomic<RunKernel> run_rows;

// Values that earlier calls have computed, by the numbers that Python gave to their expressions.
struct Known {
  std::vector<int64_t> names;
  Tensors values;
};

// How a call is computed whose gradients take values from it, in the terms of _row_function.py.
struct Recording {
  std::shared_ptr<struct RowFunction> function;  // null: only Python can compute it, or the function is its own
  bool is_itself;
  std::vector<int64_t> operands, kept, places, passed;  // places among the results, passed among the known values
};

struct RowDerivative {
  std::shared_ptr<struct RowFunction> function;  // null: only Python can compute it
  std::vector<int64_t> arguments, scalars, results, kinds;
};

struct RowFunction : std::enable_shared_from_this<RowFunction> {
  RowFunction(PyObject* elementwise, size_t scalars, size_t outputs, std::string name, std::string node_name)
      : elementwise(Py_NewRef(elementwise)),
        scalars(scalars),
        outputs(outputs),
        name("torchad_ext::" + std::move(name)),
        node_name(std::move(node_name)) {
    for (auto& of_length : kernels) {
      for (auto& kernel : of_length) kernel = nullptr;
    }
  }
  RowFunction(const RowFunction&) = delete;

  ~RowFunction() {
    if (!elementwise || !Py_IsInitialized()) return;
    const py::gil_scoped_acquire gil;
    Py_DECREF(elementwise);
  }

  const RowKernel* kernel(at::ScalarType dtype, int64_t length) const {
    return kernels[length <= longest_short_row][Function::place(dtype)].load(std::memory_order_acquire);
  }
  std::optional<Tensors> compute(const Tensors& xs, const Numbers& numbers, const Shape& shape, size_t count) const;
  std::optional<Tensors> apply(const Tensors& xs, const Numbers& numbers, const Shape& shape, const Known& known);
  const RowDerivative& vjp(Masks masks);
  const Recording& recorded(const std::vector<int64_t>& known);

  PyObject* elementwise;
  const size_t scalars, outputs;
  const std::string name, node_name;
  std::array<std::array<std::atomic<const RowKernel*>, 4>, 2> kernels;  // of longer rows, of short ones
  std::mutex mutex;                                                     // of what follows
  std::map<Masks, RowDerivative> vjps;
  std::map<std::vector<int64_t>, Recording> recordings;
};

using RowFunctionPtr = std::shared_ptr<RowFunction>;
using Places = std::vector<int64_t>;

Shape shape_of_kind(Kind kind, const Shape& shape) {
  if (kind == Kind::column) return {shape.back()};
  Shape result = shape;
  if (kind == Kind::row) result.back() = 1;
  return result;
}

RowFunctionPtr row_function(const py::object& object) {
  return object.is_none() ? nullptr : value_of<RowFunctionPtr>(object.ptr());
}

const RowDerivative& RowFunction::vjp(Masks masks) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = vjps.find(masks); found != vjps.end()) return found->second;
  }
  RowDerivative derivative = ask_python([&] {
    auto [of, arguments, scalars, results, kinds] = py::handle(elementwise)
                                                        .attr("vjp_of_masks")(masks.first, masks.second)
                                                        .cast<std::tuple<py::object, Places, Places, Places, Places>>();
    return RowDerivative{row_function(of), arguments, scalars, results, kinds};
  });
  const std::lock_guard<std::mutex> lock(mutex);
  return vjps.emplace(masks, std::move(derivative)).first->second;
}

const Recording& RowFunction::recorded(const Places& known) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = recordings.find(known); found != recordings.end()) return found->second;
  }
  Recording made = ask_python([&] {
    auto [of, operands, kept, places, passed] = py::handle(elementwise)
                                                    .attr("recorded_with")(known)
                                                    .cast<std::tuple<py::object, Places, Places, Places, Places>>();
    RowFunctionPtr found = row_function(of);
    const bool is_itself = found.get() == this;
    return Recording{is_itself ? nullptr : std::move(found), is_itself, operands, kept, places, passed};
  });
  const std::lock_guard<std::mutex> lock(mutex);
  return recordings.emplace(known, std::move(made)).first->second;
}

// The first `count` results of the kernel; none if there is none yet, or an operand has not the shape of its kind.
std::optional<Tensors> RowFunction::compute(const Tensors& xs, const Numbers& numbers, const Shape& shape,
                                            size_t count) const {
  const RowKernel* const kernel = this->kernel(xs[0].scalar_type(), shape.back());
  if (!kernel || size_t(kernel->inputs) != xs.size()) return std::nullopt;
  RECORD_FUNCTION(name, std::vector<c10::IValue>());
  Tensors results;
  c10::SmallVector<void*, 8> data;
  c10::SmallVector<const int64_t*, 8> strides(kernel->outputs, nullptr);
  for (size_t k = 0; k < count; ++k) {
    results.emplace_back(at::detail::empty_cpu(shape_of_kind(kernel->kinds[k], shape), xs[0].scalar_type()));
    advise_huge_pages(results[k].data_ptr(), results[k].nbytes());
    data.push_back(results[k].data_ptr());
  }
  data.resize(kernel->outputs, nullptr);
  for (int k = 0; k < kernel->inputs; ++k) {
    if (!xs[k].sizes().equals(shape_of_kind(kernel->kinds[kernel->outputs + k], shape))) return std::nullopt;
    data.push_back(const_cast<void*>(xs[k].const_data_ptr()));
    TORCH_CHECK(data.back(), "torchad_ext: a tensor of ", xs[k].numel(),
                " elements has no memory; was its storage resized?");
    strides.push_back(xs[k].strides().data());
  }
  Numbers all(numbers);
  all.push_back(double(shape.back()));
  const auto run = run_rows.load(std::memory_order_acquire);
  run(*kernel, int(shape.size()), shape.data(), strides.data(), data.data(), all.data(), -1);
  return results;
}

struct RowPullback : SavingNode {
  // Saves the inputs that the gradients of those which require one depend on, and values of the row.
  RowPullback(RowFunctionPtr owner, const Tensors& xs, const Numbers& numbers, const Shape& shape, uint64_t wanted,
              Known known)
      : SavingNode(xs.size()),
        function(std::move(owner)),
        numbers(numbers),
        shape(shape),
        names(std::move(known.names)) {
    for (const auto i : function->vjp({wanted, all_bits(function->outputs)}).arguments) {
      if (size_t(i) < inputs) saved[i] = torch::autograd::SavedVariable(xs[i], /*is_output=*/false);
    }
    for (const at::Tensor& value : known.values) saved.emplace_back(value, /*is_output=*/false);
  }

  std::string name() const override { return function->node_name; }

  variable_list apply(variable_list&& grads) override {
    return gradients(*function, numbers, shape, names, inputs, unpacked(), grads, wanted(), num_outputs());
  }

  static variable_list gradients(RowFunction& function, const Numbers& numbers, const Shape& shape, const Places& names,
                                 size_t inputs, const Tensors& saved, const variable_list& grads, uint64_t wanted,
                                 size_t count) {
    variable_list results(count);
    Tensors arguments(saved.begin(), saved.begin() + inputs);
    const Known known{names, Tensors(saved.begin() + inputs, saved.end())};
    uint64_t given = 0;
    for (size_t k = 0; k < grads.size(); ++k) {
      if (!grads[k].defined()) continue;
      given |= uint64_t(1) << k;
      arguments.push_back(grads[k]);
    }
    if (!wanted || !given) return results;
    const RowDerivative& derivative = function.vjp({wanted, given});
    std::optional<Tensors> found = computed(derivative, arguments, numbers, shape, known);
    if (!found) {
      found = ask_python([&] { return pullback(function, arguments, numbers, {wanted, given}, shape, known); });
    }
    size_t next = 0;
    for (size_t i = 0; i < count; ++i) {
      if (wanted >> i & 1) results[i] = std::move((*found)[next++]);
    }
    return results;
  }

  // The gradients of all that are wanted; none if the way through Python has to be taken.
  static std::optional<Tensors> computed(const RowDerivative& derivative, const Tensors& all, const Numbers& numbers,
                                         const Shape& shape, const Known& known) {
    if (!derivative.function) return std::nullopt;
    Tensors xs;
    Numbers chosen;
    for (const auto i : derivative.arguments) xs.push_back(all[i]);
    for (const auto i : derivative.scalars) chosen.push_back(numbers[i]);
    std::optional<Tensors> outputs =
        derivative.results.empty() ? Tensors() : derivative.function->apply(xs, chosen, shape, known);
    if (!outputs) return std::nullopt;
    Tensors gradients(derivative.kinds.size());
    for (size_t k = 0; k < derivative.results.size(); ++k) {
      gradients[derivative.results[k]] = std::move((*outputs)[k]);
    }
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (gradients[i].defined()) continue;
      gradients[i] = all.back().new_zeros({}).expand(shape_of_kind(Kind(derivative.kinds[i]), shape));
    }
    return gradients;
  }

  static Tensors pullback(const RowFunction& function, const Tensors& arguments, const Numbers& numbers, Masks masks,
                          const Shape& shape, const Known& known) {
    const py::object results =
        py::handle(function.elementwise)
            .attr("pullback_of_rows")(tuple_of_tensors(arguments), tuple_of_numbers(numbers), masks.first, masks.second,
                                      tuple_of(shape), tuple_of(known.names), tuple_of_tensors(known.values));
    return gradients_of(results, masks.first);
  }

  // Compiled autograd: what this node depends on, and the node as a function of that.
  void compiled_args(dynamo::CompiledNodeArgs& args) const override {
    args.collect(uint64_t(reinterpret_cast<uintptr_t>(function.get())));
    for (const double number : numbers) args.collect(number);
    args.collect(at::IntArrayRef(shape));
    args.collect(at::IntArrayRef(names));
    args.collect(saved, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& grads, dynamo::SwapSavedVariables& swap) override {
    swap.before(saved);
    const Tensors xs = unpacked();
    const auto call = [function = function, numbers = numbers, shape = shape, names = names, inputs = inputs,
                       wanted = wanted(), count = num_outputs()](const variable_list& grads, const variable_list& xs) {
      return gradients(*function, numbers, shape, names, inputs, Tensors(xs.begin(), xs.end()), grads, wanted, count);
    };
    auto results = call_functional(*this, swap, grads, xs, call);
    swap.after(saved);
    return results;
  }

  const RowFunctionPtr function;
  const Numbers numbers;
  const Shape shape;  // of the operands with a value an element
  const Places names;
};

// The results of a call with its node in the graph.
Tensors with_node(RowFunction& function, const Tensors& xs, const Numbers& numbers, const Shape& shape, uint64_t wanted,
                  Tensors results, Known known) {
  torch::autograd::edge_list edges;
  for (const at::Tensor& x : xs) edges.push_back(torch::autograd::impl::gradient_edge(x));
  const NodePtr node =
      make_node<RowPullback>(function.shared_from_this(), xs, numbers, shape, wanted, std::move(known));
  node->set_next_edges(std::move(edges));
  for (const at::Tensor& y : results) torch::autograd::set_history(y, node);
  return results;
}

// The results on plain tensors, differentiable; none if the tensors are not plain or there is no kernel yet.
std::optional<Tensors> RowFunction::apply(const Tensors& xs, const Numbers& numbers, const Shape& shape,
                                          const Known& known) {
  if (xs.empty() || xs[0].is_cuda() || !are_plain(xs)) return std::nullopt;
  const auto dtype = xs[0].scalar_type();
  uint64_t wanted = 0;
  if (is_recorded(xs)) {
    for (size_t i = 0; i < xs.size(); ++i) wanted |= uint64_t(xs[i].requires_grad()) << i;
  }
  // Values of short rows are computed again: reading them would take longer.
  const bool keeps = shape.back() > longest_short_row && (dtype == at::kFloat || dtype == at::kDouble);
  if (known.names.empty() && !(wanted && keeps)) {
    std::optional<Tensors> results = compute(xs, numbers, shape, outputs);
    return results && wanted ? with_node(*this, xs, numbers, shape, wanted, std::move(*results), {}) : results;
  }
  const Recording& how = recorded(known.names);
  if (!how.function && !how.is_itself) return std::nullopt;
  Tensors operands;
  for (const auto i : how.operands) operands.push_back(size_t(i) < xs.size() ? xs[i] : known.values[i - xs.size()]);
  if (!are_plain(operands)) return std::nullopt;  // hooks of saved tensors gave values of another kind
  const RowFunction& function = how.is_itself ? *this : *how.function;
  std::optional<Tensors> results = function.compute(operands, numbers, shape, wanted ? function.outputs : outputs);
  if (!results || !wanted) return results;
  Known kept{how.kept, {}};
  for (const auto i : how.places) {  // a result is kept without its node, which keeps it
    kept.values.push_back(size_t(i) < outputs ? (*results)[i].detach() : (*results)[i]);
  }
  results->resize(outputs);
  for (const auto i : how.passed) {
    kept.names.push_back(known.names[i]);
    kept.values.push_back(known.values[i]);
  }
  return with_node(*this, xs, numbers, shape, wanted, std::move(*results), std::move(kept));
}

// One way of calling an op on rows. Of each parameter: a tensor of a kind, or another argument.
enum class Argument { element, row, column, number, option, length };

struct RowCall {
  py::object function;
  at::ScalarType dtype;
  std::vector<Argument> arguments;
  std::vector<py::object> options;                  // of each parameter, the value of an option
  std::vector<std::pair<int64_t, double>> numbers;  // of each scalar, its parameter, or -1 and its value
  uint64_t dropped;                                 // a bit for each result that has no last dimension
  size_t dims;                                      // of the tensors; 0 for any
};

bool are_equal_options(PyObject* a, PyObject* b) {
  if (a == b) return true;
  if (PyUnicode_CheckExact(a) && PyUnicode_CheckExact(b)) return !PyUnicode_Compare(a, b);
  if (PyFloat_CheckExact(a) && PyFloat_CheckExact(b)) {  // zeros of both signs differ
    const double x = PyFloat_AS_DOUBLE(a), y = PyFloat_AS_DOUBLE(b);
    return !std::memcmp(&x, &y, sizeof x);
  }
  return PyLong_CheckExact(a) && PyLong_CheckExact(b) && PyObject_RichCompareBool(a, b, Py_EQ) == 1;
}

// Is it a sequence of this one number?
bool is_sequence_of(PyObject* sequence, int64_t number) {
  if (!PyTuple_Check(sequence) && !PyList_CheckExact(sequence)) return false;
  if (PySequence_Fast_GET_SIZE(sequence) != 1) return false;
  PyObject* const only = PySequence_Fast_GET_ITEM(sequence, 0);
  return PyLong_CheckExact(only) && PyLong_AsLongLong(only) == number;
}

// The tensors of a call, which have the shapes of their kinds, and the numbers; false if it is not of this way.
bool fits(const RowCall& call, PyObject* const* given, Tensors& xs, Numbers& numbers, Shape& shape) {
  const size_t count = call.arguments.size();
  for (size_t i = 0; i < count; ++i) {
    const bool is_tensor = THPVariable_CheckExact(given[i]);
    if (is_tensor != (call.arguments[i] <= Argument::column)) return false;
    if (!is_tensor) continue;
    const at::Tensor& x = THPVariable_Unpack(given[i]);
    if (x.scalar_type() != call.dtype || x.is_nested()) return false;  // such a tensor has no shape
    if (call.arguments[i] == Argument::element) shape.assign(x.sizes().begin(), x.sizes().end());
    xs.push_back(x);
  }
  if (shape.empty() || (call.dims && shape.size() != call.dims) || shape.back() < 2 ||
      std::find(shape.begin(), shape.end(), 0) != shape.end())
    return false;
  size_t next = 0;
  for (size_t i = 0; i < count; ++i) {
    switch (call.arguments[i]) {
      case Argument::element:
      case Argument::row:
      case Argument::column:
        if (call.arguments[i] == Argument::column && shape.size() < 2) return false;
        if (!xs[next++].sizes().equals(shape_of_kind(Kind(int(call.arguments[i])), shape))) return false;
        break;
      case Argument::number:
        if (!PyFloat_CheckExact(given[i]) && !PyLong_CheckExact(given[i])) return false;
        break;
      case Argument::option:
        if (!are_equal_options(given[i], call.options[i].ptr())) return false;
        break;
      case Argument::length:
        if (!is_sequence_of(given[i], shape.back())) return false;
    }
  }
  for (const auto& [place, value] : call.numbers) {
    numbers.push_back(place < 0 ? value : PyFloat_AsDouble(given[place]));
  }
  return true;
}

}  // namespace
}  // namespace torchad_ext
