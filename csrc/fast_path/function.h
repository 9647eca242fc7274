// The call of a pointwise op on plain tensors, and its node in the autograd graph.
//
// It does what _elementwise.py does, where only the cost of a call counts. An Elementwise of Python stands behind each
// Function here: it makes the derivatives and the kernels when they are first needed, and it takes what is not plain (a
// transform, a mode, a tangent, a subclass, ...).
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/ops/_add_batch_dim.h>
#include <ATen/ops/_remove_batch_dim.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <optional>

#include "../huge_pages.h"
#include "../kernel.h"
#include "compiled_autograd.h"
#include "python.h"

namespace torchad_ext {
namespace {

using Numbers = c10::SmallVector<double, 4>;

constexpr int devices = 2;  // CPU, CUDA
std::array<std::atomic<RunKernel>, devices> run_kernel;

constexpr uint64_t all_bits(size_t count) { return count < 64 ? (uint64_t(1) << count) - 1 : ~uint64_t(0); }

// What _elementwise.py calls a Derivative: a function of some of its arguments, and which of the wanted results it
// gives; the others are zero.
struct Derivative {
  std::shared_ptr<struct Function> function;  // null: only Python can compute it
  std::vector<int64_t> arguments, scalars, results;
  size_t wanted;

  bool compute(const Tensors& arguments, const Numbers& scalars, const struct Broadcast& broadcast,
               Tensors& gradients) const;
};

using Shape = c10::DimVector;
using Shapes = c10::SmallVector<Shape, 4>;

// The shape that tensors broadcast to, and those that the results are summed to. No shapes: all tensors have one shape.
struct Broadcast {
  Shape shape;
  Shapes results;
  // The tensors that each result depends on, where the shapes are to be found.
  std::shared_ptr<const std::vector<uint64_t>> reads;

  bool is_trivial() const { return results.empty(); }
};

// The shape that some of the tensors broadcast to, those whose bits are set; false if they do not.
bool broadcast_shape(const Tensors& xs, uint64_t chosen, Shape& shape) {
  for (size_t i = 0; i < xs.size(); ++i) {
    if (!(chosen >> i & 1)) continue;
    const auto sizes = xs[i].sizes();
    if (sizes.size() > shape.size()) shape.insert(shape.begin(), sizes.size() - shape.size(), 1);
    const size_t missing = shape.size() - sizes.size();
    for (size_t d = 0; d < sizes.size(); ++d) {
      int64_t& size = shape[missing + d];
      if (size == 1) size = sizes[d];
      if (sizes[d] != size && sizes[d] != 1) return false;
    }
  }
  return true;
}

// The strides of a tensor that is expanded to a shape.
void expanded_strides(const at::Tensor& x, const Shape& shape, int64_t* strides) {
  const size_t missing = shape.size() - x.dim();
  for (size_t d = 0; d < shape.size(); ++d) {
    const bool repeats = d < missing || (x.sizes()[d - missing] == 1 && shape[d] != 1);
    strides[d] = repeats ? 0 : x.strides()[d - missing];
  }
}

// The wanted gradients and the given cotangents, a bit each. Python keeps functions of more than 64 tensors to itself.
using Masks = std::pair<uint64_t, uint64_t>;

struct Function : std::enable_shared_from_this<Function> {
  Function(PyObject* elementwise, size_t scalars, size_t outputs, std::string name, std::string node_name)
      : elementwise(Py_NewRef(elementwise)),
        scalars(scalars),
        outputs(outputs),
        name("torchad_ext::" + std::move(name)),
        node_name(std::move(node_name)) {
    for (auto& of_device : kernels) {
      for (auto& kernel : of_device) kernel = nullptr;
    }
  }
  Function(const Function&) = delete;

  ~Function() {
    if (!elementwise || !Py_IsInitialized()) return;
    const py::gil_scoped_acquire gil;
    Py_DECREF(elementwise);
  }

  static int place(at::ScalarType dtype) {
    switch (dtype) {
      case at::kHalf:
        return 0;
      case at::kBFloat16:
        return 1;
      case at::kFloat:
        return 2;
      case at::kDouble:
        return 3;
      default:
        return -1;
    }
  }

  const Kernel* plain_kernel(const Tensors& xs, Broadcast& broadcast) const;
  Tensors compute(const Kernel& kernel, const Tensors& xs, const Numbers& scalars) const;
  Tensors compute(const Kernel& kernel, const Tensors& xs, const Numbers& scalars, const Broadcast& broadcast) const;
  std::optional<Tensors> apply(const Tensors& xs, const Numbers& scalars, Broadcast broadcast = {});
  std::optional<Tensors> apply_to_batch(const Tensors& xs, const Numbers& scalars) const;
  const Derivative& vjp(Masks masks);

  PyObject* elementwise;
  const size_t scalars, outputs;
  const std::string name, node_name;
  std::array<std::array<std::atomic<const Kernel*>, 4>, devices> kernels;
  std::mutex mutex;  // of vjps
  std::map<Masks, Derivative> vjps;
};

using FunctionPtr = std::shared_ptr<Function>;

c10::DispatchKeySet plain_keys(bool cuda) {
  static const c10::DispatchKeySet cpu_keys({c10::DispatchKey::CPU, c10::DispatchKey::AutocastCPU});
  static const c10::DispatchKeySet cuda_keys({c10::DispatchKey::CUDA, c10::DispatchKey::AutocastCUDA});
  return cuda ? cuda_keys : cpu_keys;
}

// Are tensors of one dtype nothing but numbers in the memory of one device, with no transform, mode or tangent at work?
bool are_plain(const Tensors& xs) {
  const auto local = c10::impl::tls_local_dispatch_key_set();
  const bool cuda = xs[0].is_cuda();
  const auto autocast = cuda ? c10::DispatchKey::AutocastCUDA : c10::DispatchKey::AutocastCPU;
  const auto included = local.included_ - c10::default_included_set - c10::DispatchKeySet(c10::DispatchKey::VmapMode);
  if (!included.empty() || !local.excluded_.has(autocast)) return false;
  if (Function::place(xs[0].scalar_type()) < 0 || xs[0].dim() > most_dims) return false;
  const auto plain = plain_keys(cuda);
  for (const at::Tensor& x : xs) {
    if (x.key_set() - c10::autograd_dispatch_keyset_with_ADInplaceOrView != plain) return false;
    if (x.scalar_type() != xs[0].scalar_type() || x._fw_grad(0).defined()) return false;
    if (cuda && x.device() != xs[0].device()) return false;
  }
  return true;
}

// The kernel for plain tensors, of one shape or of those that broadcast, else null.
const Kernel* Function::plain_kernel(const Tensors& xs, Broadcast& broadcast) const {
  if (!are_plain(xs)) return nullptr;
  const auto is_alike = [&](const at::Tensor& x) { return x.sizes().equals(xs[0].sizes()); };
  if (broadcast.is_trivial() && !std::all_of(xs.begin(), xs.end(), is_alike)) {
    if (!broadcast.reads || !broadcast_shape(xs, all_bits(xs.size()), broadcast.shape)) return nullptr;
    for (const uint64_t read : *broadcast.reads) {
      Shape shape;
      broadcast_shape(xs, read, shape);
      if (shape != broadcast.shape) return nullptr;  // such a result has a shape of its own
    }
    broadcast.results.assign(outputs, broadcast.shape);
  }
  if (!broadcast.is_trivial() && (broadcast.shape.size() > size_t(most_dims) || xs[0].is_cuda())) return nullptr;
  return kernels[xs[0].is_cuda()][place(xs[0].scalar_type())].load(std::memory_order_acquire);
}

Tensors Function::compute(const Kernel& kernel, const Tensors& xs, const Numbers& scalars) const {
  RECORD_FUNCTION(name, std::vector<c10::IValue>());
  const at::Tensor& x = xs[0];
  const auto sizes = x.sizes();
  const int dims = int(sizes.size());
  c10::SmallVector<const int64_t*, 8> strides;
  c10::SmallVector<void*, 8> data;
  for (const at::Tensor& input : xs) strides.push_back(input.strides().data());
  int64_t result[most_dims];
  result_strides(kernel.inputs, dims, sizes.data(), strides.data(), result);
  const at::IntArrayRef dense(result, dims);
  Tensors outputs;
  for (int k = 0; k < kernel.outputs; ++k) {
    if (x.is_cuda()) {
      outputs.push_back(at::empty_strided(sizes, dense, x.options()));
    } else {
      outputs.emplace_back(at::detail::empty_strided_cpu(sizes, dense, x.scalar_type()));
      advise_huge_pages(outputs[k].data_ptr(), outputs[k].nbytes());
    }
    data.push_back(outputs[k].data_ptr());
  }
  strides.insert(strides.begin(), kernel.outputs, result);
  for (const at::Tensor& input : xs) {
    data.push_back(const_cast<void*>(input.const_data_ptr()));
    TORCH_CHECK(data.back() || input.numel() == 0, "torchad_ext: a tensor of ", input.numel(),
                " elements has no memory; was its storage resized?");
  }
  const auto run = run_kernel[x.is_cuda()].load(std::memory_order_acquire);
  run(kernel, dims, sizes.data(), strides.data(), data.data(), scalars.data(), x.get_device());
  return outputs;
}

// The same of tensors that broadcast, with results summed to their shapes.
Tensors Function::compute(const Kernel& kernel, const Tensors& xs, const Numbers& scalars,
                          const Broadcast& broadcast) const {
  RECORD_FUNCTION(name, std::vector<c10::IValue>());
  const Shape& shape = broadcast.shape;
  const int dims = int(shape.size()), operands = kernel.outputs + kernel.inputs;
  c10::SmallVector<int64_t, 64> all(size_t(operands) * dims);
  c10::SmallVector<const int64_t*, 8> strides;
  c10::SmallVector<void*, 8> data(operands);
  for (int k = 0; k < operands; ++k) strides.push_back(all.data() + size_t(k) * dims);
  for (int k = 0; k < kernel.inputs; ++k) {
    expanded_strides(xs[k], shape, all.data() + size_t(kernel.outputs + k) * dims);
    data[kernel.outputs + k] = const_cast<void*>(xs[k].const_data_ptr());
    TORCH_CHECK(data[kernel.outputs + k] || xs[k].numel() == 0, "torchad_ext: a tensor of ", xs[k].numel(),
                " elements has no memory; was its storage resized?");
  }
  int64_t whole[most_dims];
  result_strides(kernel.inputs, dims, shape.data(), strides.data() + kernel.outputs, whole);
  Tensors outputs;
  for (int k = 0; k < kernel.outputs; ++k) {
    const Shape& own = broadcast.results[k];
    if (c10::multiply_integers(own) == c10::multiply_integers(shape)) {  // no sum: it lies in memory as the loop runs
      const at::IntArrayRef strides_of_own(whole + (shape.size() - own.size()), own.size());
      outputs.emplace_back(at::detail::empty_strided_cpu(own, strides_of_own, xs[0].scalar_type()));
    } else {
      outputs.emplace_back(at::detail::empty_cpu(own, xs[0].scalar_type()));
    }
    advise_huge_pages(outputs[k].data_ptr(), outputs[k].nbytes());
    expanded_strides(outputs[k], shape, all.data() + size_t(k) * dims);
    data[k] = outputs[k].data_ptr();
  }
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) {
    for (at::Tensor& y : outputs) y.zero_();
    return outputs;
  }
  const auto run = run_kernel[0].load(std::memory_order_acquire);
  run(kernel, dims, shape.data(), strides.data(), data.data(), scalars.data(), xs[0].get_device());
  return outputs;
}

const Derivative& Function::vjp(Masks masks) {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    if (const auto found = vjps.find(masks); found != vjps.end()) return found->second;
  }
  Derivative derivative = ask_python([&] {
    using Places = std::vector<int64_t>;
    auto [function, arguments, scalars, results] = py::handle(elementwise)
                                                       .attr("vjp_of_masks")(masks.first, masks.second)
                                                       .cast<std::tuple<py::object, Places, Places, Places>>();
    Derivative result{nullptr, arguments, scalars, results, size_t(__builtin_popcountll(masks.first))};
    if (!function.is_none()) result.function = value_of<FunctionPtr>(function.ptr());
    return result;
  });
  const std::lock_guard<std::mutex> lock(mutex);
  return vjps.emplace(masks, std::move(derivative)).first->second;
}

// A node that saves tensors: its inputs first, undefined where no derivative reads one.
struct SavingNode : torch::autograd::Node {
  explicit SavingNode(size_t inputs) : inputs(inputs), saved(inputs) {}

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& x : saved) x.reset_data();
  }

  Tensors unpacked() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Tensors xs;
    for (const auto& x : saved) xs.push_back(x.unpack());
    return xs;
  }

  // The inputs whose gradients will be used, a bit each.
  uint64_t wanted() const {
    uint64_t mask = 0;
    for (size_t i = 0; i < inputs; ++i) mask |= uint64_t(task_should_compute_output(i)) << i;
    return mask;
  }

  const size_t inputs;
  std::vector<torch::autograd::SavedVariable> saved;
};

// Arguments and results of Python's pullbacks.
py::tuple tuple_of_tensors(const Tensors& tensors) {
  py::tuple result(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    result[i] = py::reinterpret_steal<py::object>(THPVariable_Wrap(tensors[i]));
  }
  return result;
}

py::tuple tuple_of_numbers(const Numbers& numbers) {
  py::tuple result(numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) result[i] = numbers[i];
  return result;
}

Tensors gradients_of(const py::object& results, uint64_t wanted) {
  Tensors gradients;
  for (const py::handle gradient : results) {
    TORCH_CHECK_TYPE(THPVariable_Check(gradient.ptr()), "pullback gives tensors");
    gradients.push_back(THPVariable_Unpack(gradient.ptr()));
  }
  TORCH_INTERNAL_ASSERT(int(gradients.size()) == __builtin_popcountll(wanted));
  return gradients;
}

struct Pullback : SavingNode {
  // Saves the inputs that the gradients of those which require one depend on.
  Pullback(std::shared_ptr<Function> owner, const Tensors& xs, const Numbers& scalars, const Broadcast& broadcast)
      : SavingNode(xs.size()), function(std::move(owner)), scalars(scalars), shape(broadcast.shape) {
    if (!broadcast.is_trivial()) {
      for (const at::Tensor& x : xs) operands.emplace_back(x.sizes().begin(), x.sizes().end());
    }
    uint64_t wanted = 0;
    for (size_t i = 0; i < xs.size(); ++i) wanted |= uint64_t(xs[i].requires_grad()) << i;
    for (const auto i : function->vjp({wanted, all_bits(function->outputs)}).arguments) {
      if (size_t(i) < inputs) saved[i] = torch::autograd::SavedVariable(xs[i], /*is_output=*/false);
    }
  }

  std::string name() const override { return function->node_name; }

  variable_list apply(variable_list&& grads) override {
    return gradients(*function, scalars, shape, operands, unpacked(), grads, wanted(), num_outputs());
  }

  static variable_list gradients(Function& function, const Numbers& scalars, const Shape& shape, const Shapes& operands,
                                 Tensors arguments, const variable_list& grads, uint64_t wanted, size_t count) {
    variable_list results(count);
    uint64_t given = 0;
    for (size_t k = 0; k < grads.size(); ++k) {
      if (!grads[k].defined()) continue;
      given |= uint64_t(1) << k;
      arguments.push_back(grads[k]);
    }
    if (!wanted || !given) return results;
    const Masks masks{wanted, given};
    const Derivative& derivative = function.vjp(masks);
    Broadcast broadcast{shape, {}, {}};
    for (size_t i = 0; i < operands.size(); ++i) {
      if (wanted >> i & 1) broadcast.results.push_back(operands[i]);
    }
    Tensors gradients;
    if (!derivative.compute(arguments, scalars, broadcast, gradients)) {
      gradients = ask_python([&] { return pullback(function, scalars, shape, operands, arguments, masks); });
    }
    size_t next = 0;
    for (size_t i = 0; i < count; ++i) {
      if (wanted >> i & 1) results[i] = std::move(gradients[next++]);
    }
    return results;
  }

  static Tensors pullback(const Function& function, const Numbers& scalars, const Shape& shape, const Shapes& operands,
                          const Tensors& arguments, Masks masks) {
    const py::handle elementwise = function.elementwise;
    py::tuple shapes(operands.size());
    for (size_t i = 0; i < operands.size(); ++i) shapes[i] = tuple_of(operands[i]);
    const py::object results = elementwise.attr("pullback")(tuple_of_tensors(arguments), tuple_of_numbers(scalars),
                                                            masks.first, masks.second, tuple_of(shape), shapes);
    return gradients_of(results, masks.first);
  }

  // Compiled autograd: what this node depends on, and the node as a function of that.
  void compiled_args(dynamo::CompiledNodeArgs& args) const override {
    args.collect(uint64_t(reinterpret_cast<uintptr_t>(function.get())));
    for (const double number : scalars) args.collect(number);
    args.collect(at::IntArrayRef(shape));
    for (const Shape& operand : operands) args.collect(at::IntArrayRef(operand));
    args.collect(saved, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& grads, dynamo::SwapSavedVariables& swap) override {
    swap.before(saved);
    const Tensors xs = unpacked();
    const auto call = [function = function, scalars = scalars, shape = shape, operands = operands, wanted = wanted(),
                       count = num_outputs()](const variable_list& grads, const variable_list& xs) {
      return gradients(*function, scalars, shape, operands, Tensors(xs.begin(), xs.end()), grads, wanted, count);
    };
    auto results = call_functional(*this, swap, grads, xs, call);
    swap.after(saved);
    return results;
  }

  const std::shared_ptr<Function> function;
  const Numbers scalars;
  const Shape shape;  // that the tensors broadcast to,
  Shapes operands;    // and their own; none if they have one shape
};

// Is an operation on these tensors to be differentiated? Not inside another one, below the autograd keys.
bool is_recorded(const Tensors& xs) {
  const auto excluded = c10::impl::tls_local_dispatch_key_set().excluded_;
  if (!at::GradMode::is_enabled() || excluded.has(c10::DispatchKey::AutogradFunctionality)) return false;
  return std::any_of(xs.begin(), xs.end(), [](const at::Tensor& x) { return x.requires_grad(); });
}

// Does is_grads_batched hide a batch in this tensor?
bool hides_batch(const at::Tensor& x) { return x.key_set().has(c10::DispatchKey::Batched); }

// The results for batches of is_grads_batched, which become the first dimension; none where such batches are nested or
// a derivative is wanted.
std::optional<Tensors> Function::apply_to_batch(const Tensors& xs, const Numbers& numbers) const {
  if (is_recorded(xs)) return std::nullopt;
  constexpr int64_t level = 1;
  Tensors whole;
  c10::DimVector sizes;
  for (const at::Tensor& x : xs) {
    if (x._fw_grad(0).defined()) return std::nullopt;
    whole.push_back(hides_batch(x) ? at::_remove_batch_dim(x, level, /*batch_size=*/0, /*out_dim=*/0) : x);
    if (hides_batch(whole.back())) return std::nullopt;
    if (hides_batch(x)) sizes = whole.back().sizes();
  }
  for (at::Tensor& x : whole) x = x.expand(sizes);
  Broadcast of_one_shape;
  const Kernel* kernel = plain_kernel(whole, of_one_shape);
  if (!kernel) return std::nullopt;
  Tensors outputs = compute(*kernel, whole, numbers);
  for (at::Tensor& y : outputs) y = at::_add_batch_dim(y, 0, level);
  return outputs;
}

// The results on plain tensors, differentiable; none if the tensors are not plain or there is no kernel yet.
std::optional<Tensors> Function::apply(const Tensors& xs, const Numbers& numbers, Broadcast broadcast) {
  if (std::any_of(xs.begin(), xs.end(), hides_batch)) {
    return broadcast.is_trivial() ? apply_to_batch(xs, numbers) : std::nullopt;
  }
  const Kernel* kernel = plain_kernel(xs, broadcast);
  if (!kernel) return std::nullopt;
  TORCH_CHECK(xs.size() == size_t(kernel->inputs) && numbers.size() == scalars, name, " takes ", kernel->inputs,
              " tensors and ", scalars, " numbers, got ", xs.size(), " and ", numbers.size());
  Tensors outputs = broadcast.is_trivial() ? compute(*kernel, xs, numbers) : compute(*kernel, xs, numbers, broadcast);
  if (!is_recorded(xs)) return outputs;
  torch::autograd::edge_list edges;
  for (const at::Tensor& x : xs) edges.push_back(torch::autograd::impl::gradient_edge(x));
  const NodePtr node = make_node<Pullback>(shared_from_this(), xs, numbers, broadcast);
  node->set_next_edges(std::move(edges));
  for (const at::Tensor& y : outputs) torch::autograd::set_history(y, node);
  return outputs;
}

// The wanted gradients of all arguments; false if the way through Python has to be taken.
bool Derivative::compute(const Tensors& all, const Numbers& all_scalars, const Broadcast& broadcast,
                         Tensors& gradients) const {
  if (!function) return false;
  Tensors xs;
  Numbers numbers;
  for (const auto i : arguments) {
    TORCH_INTERNAL_ASSERT(all[i].defined(), "torchad_ext: an input was not saved for its derivative");
    xs.push_back(all[i]);
  }
  for (const auto i : scalars) numbers.push_back(all_scalars[i]);
  Broadcast of_results;
  if (!broadcast.is_trivial()) {
    for (const auto i : results) of_results.results.push_back(broadcast.results[i]);
    const auto is_whole = [&](at::IntArrayRef sizes) { return sizes.equals(broadcast.shape); };
    if (std::all_of(xs.begin(), xs.end(), [&](const at::Tensor& x) { return is_whole(x.sizes()); }) &&
        std::all_of(of_results.results.begin(), of_results.results.end(), is_whole)) {
      of_results.results.clear();
    } else {
      of_results.shape = broadcast.shape;
    }
  }
  std::optional<Tensors> outputs = results.empty() ? Tensors() : function->apply(xs, numbers, of_results);
  if (!outputs) return false;
  gradients.resize(wanted);
  for (size_t i = 0; i < wanted && results.size() < wanted; ++i) {
    const at::IntArrayRef sizes = broadcast.is_trivial() ? all.back().sizes() : at::IntArrayRef(broadcast.results[i]);
    gradients[i] = all.back().new_zeros({}).expand(sizes);
  }
  for (size_t k = 0; k < results.size(); ++k) gradients[results[k]] = std::move((*outputs)[k]);
  return true;
}

}  // namespace
}  // namespace torchad_ext
