// Eager mode in C++: the call of a pointwise op on plain tensors, and its node in the autograd graph.
//
// It does what _elementwise.py does, where only the cost of a call counts. An Elementwise of Python stands behind each
// Function here: it makes the derivatives and the kernels when they are first needed, and it takes what is not plain (a
// transform, a mode, a tangent, a subclass, ...). This file alone needs the headers of PyTorch and of Python that it
// runs with, not the stable ABI.
#include <ATen/EmptyTensor.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/ops/_add_batch_dim.h>
#include <ATen/ops/_remove_batch_dim.h>
#include <ATen/ops/empty_strided.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <atomic>
#include <map>
#include <optional>

#include "../huge_pages.h"
#include "../kernel.h"

namespace torchad_ext {
namespace {

namespace dynamo = torch::dynamo::autograd;
using torch::autograd::variable_list;
using Tensors = c10::SmallVector<at::Tensor, 4>;
using Numbers = c10::SmallVector<double, 4>;
using NodePtr = decltype(torch::autograd::Edge::function);

constexpr int devices = 2;  // CPU, CUDA
std::array<std::atomic<RunKernel>, devices> run_kernel;

// What _elementwise.py calls a Derivative: a function of some of its arguments, and which of the wanted results it
// gives; the others are zero.
struct Derivative {
  std::shared_ptr<struct Function> function;  // null: only Python can compute it
  std::vector<int64_t> arguments, scalars, results;
  size_t wanted;

  bool compute(const Tensors& arguments, const Numbers& scalars, Tensors& gradients) const;
};

// The wanted gradients and the given cotangents, a bit each. Python keeps functions of more than 64 tensors to itself.
using Masks = std::pair<uint64_t, uint64_t>;

constexpr uint64_t all_bits(size_t count) { return count < 64 ? (uint64_t(1) << count) - 1 : ~uint64_t(0); }

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

  const Kernel* plain_kernel(const Tensors& xs) const;
  Tensors compute(const Kernel& kernel, const Tensors& xs, const Numbers& scalars) const;
  std::optional<Tensors> apply(const Tensors& xs, const Numbers& scalars);
  std::optional<Tensors> apply_to_batch(const Tensors& xs, const Numbers& scalars) const;
  const Derivative& vjp(Masks masks);

  PyObject* elementwise;
  const size_t scalars, outputs;
  const std::string name, node_name;
  std::array<std::array<std::atomic<const Kernel*>, 4>, devices> kernels;
  std::mutex mutex;  // of vjps
  std::map<Masks, Derivative> vjps;
};

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

// The kernel for plain tensors of one shape, else null.
const Kernel* Function::plain_kernel(const Tensors& xs) const {
  if (!are_plain(xs)) return nullptr;
  for (const at::Tensor& x : xs) {
    if (!x.sizes().equals(xs[0].sizes())) return nullptr;
  }
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

// Python's error as an exception of C++ that can cross threads.
template <class F>
auto ask_python(F f) {
  const py::gil_scoped_acquire gil;
  try {
    return f();
  } catch (py::error_already_set& error) {
    error.restore();
    python_error raised;
    raised.persist();
    throw raised;
  }
}

// In compiled autograd: what a node computes, call(grads, saved), as a call in the graph.
template <class Call>
variable_list call_functional(const torch::autograd::Node& node, dynamo::SwapSavedVariables& swap,
                              const variable_list& grads, const Tensors& saved, Call call) {
  dynamo::PackedArgs packed;
  packed.pack(variable_list(saved.begin(), saved.end()));
  const auto args = std::move(packed).vec();
  std::vector<at::TypePtr> schema;
  for (const auto& arg : args) schema.push_back(arg.isTensor() ? at::TensorType::get() : arg.type());
  const auto unpacking = [call](const variable_list& grads, const std::vector<c10::IValue>& args) {
    dynamo::PackedArgs packed(args);
    return call(grads, packed.unpack<variable_list>());
  };
  const auto& interface = dynamo::getPyCompilerInterface();
  const auto metadata = dynamo::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
      dynamo::get_input_metadata(node.next_edges()));
  const auto bound = interface->bind_function(swap.get_py_compiler(), node.name(), unpacking, schema,
                                              /*is_custom_function=*/true, /*is_traceable=*/true);
  return interface->call_function(swap.get_py_compiler(), "apply_functional", bound, grads, args, metadata);
}

// One application of a Function in the autograd graph.
struct Pullback : torch::autograd::Node {
  // Saves the inputs that the gradients of those which require one depend on.
  Pullback(std::shared_ptr<Function> owner, const Tensors& xs, const Numbers& scalars)
      : function(std::move(owner)), scalars(scalars) {
    uint64_t wanted = 0;
    for (size_t i = 0; i < xs.size(); ++i) wanted |= uint64_t(xs[i].requires_grad()) << i;
    saved.resize(xs.size());
    for (const auto i : function->vjp({wanted, all_bits(function->outputs)}).arguments) {
      if (size_t(i) < xs.size()) saved[i] = torch::autograd::SavedVariable(xs[i], /*is_output=*/false);
    }
  }

  std::string name() const override { return function->node_name; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& x : saved) x.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    return gradients(*function, scalars, unpacked(), grads, wanted(), num_outputs());
  }

  Tensors unpacked() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Tensors xs;
    for (const auto& x : saved) xs.push_back(x.unpack());
    return xs;
  }

  uint64_t wanted() const {
    uint64_t mask = 0;
    for (size_t i = 0; i < saved.size(); ++i) mask |= uint64_t(task_should_compute_output(i)) << i;
    return mask;
  }

  static variable_list gradients(Function& function, const Numbers& scalars, Tensors arguments,
                                 const variable_list& grads, uint64_t wanted, size_t count) {
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
    Tensors gradients;
    if (!derivative.compute(arguments, scalars, gradients)) {
      gradients = ask_python([&] { return pullback(function, scalars, arguments, masks); });
    }
    size_t next = 0;
    for (size_t i = 0; i < count; ++i) {
      if (wanted >> i & 1) results[i] = std::move(gradients[next++]);
    }
    return results;
  }

  static Tensors pullback(const Function& function, const Numbers& scalars, const Tensors& arguments, Masks masks) {
    py::tuple xs(arguments.size()), numbers(scalars.size());
    for (size_t i = 0; i < arguments.size(); ++i) {
      xs[i] = py::reinterpret_steal<py::object>(THPVariable_Wrap(arguments[i]));
    }
    for (size_t i = 0; i < scalars.size(); ++i) numbers[i] = scalars[i];
    const py::handle elementwise = function.elementwise;
    const py::object results = elementwise.attr("pullback")(xs, numbers, masks.first, masks.second);
    Tensors gradients;
    for (const py::handle gradient : results) {
      TORCH_CHECK_TYPE(THPVariable_Check(gradient.ptr()), "pullback gives tensors");
      gradients.push_back(THPVariable_Unpack(gradient.ptr()));
    }
    TORCH_INTERNAL_ASSERT(int(gradients.size()) == __builtin_popcountll(masks.first));
    return gradients;
  }

  // Compiled autograd: what this node depends on, and the node as a function of that.
  void compiled_args(dynamo::CompiledNodeArgs& args) const override {
    args.collect(uint64_t(reinterpret_cast<uintptr_t>(function.get())));
    for (const double number : scalars) args.collect(number);
    args.collect(saved, /*is_output=*/false);
  }

  variable_list apply_with_saved(const variable_list& grads, dynamo::SwapSavedVariables& swap) override {
    swap.before(saved);
    const Tensors xs = unpacked();
    const auto call = [function = function, scalars = scalars, wanted = wanted(), count = num_outputs()](
                          const variable_list& grads, const variable_list& xs) {
      return gradients(*function, scalars, Tensors(xs.begin(), xs.end()), grads, wanted, count);
    };
    auto results = call_functional(*this, swap, grads, xs, call);
    swap.after(saved);
    return results;
  }

  const std::shared_ptr<Function> function;
  const Numbers scalars;
  std::vector<torch::autograd::SavedVariable> saved;
};

// Before PyTorch 2.13 the graph holds its nodes by shared_ptr.
template <class N, class... Arguments>
NodePtr make_node(Arguments&&... arguments) {
  if constexpr (std::is_same_v<NodePtr, std::shared_ptr<torch::autograd::Node>>) {
    return NodePtr(new N(std::forward<Arguments>(arguments)...), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<N>(std::forward<Arguments>(arguments)...);
  }
}

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
  const Kernel* kernel = plain_kernel(whole);
  if (!kernel) return std::nullopt;
  Tensors outputs = compute(*kernel, whole, numbers);
  for (at::Tensor& y : outputs) y = at::_add_batch_dim(y, 0, level);
  return outputs;
}

// The results on plain tensors, differentiable; none if the tensors are not plain or there is no kernel yet.
std::optional<Tensors> Function::apply(const Tensors& xs, const Numbers& numbers) {
  if (std::any_of(xs.begin(), xs.end(), hides_batch)) return apply_to_batch(xs, numbers);
  const Kernel* kernel = plain_kernel(xs);
  if (!kernel) return std::nullopt;
  TORCH_CHECK(xs.size() == size_t(kernel->inputs) && numbers.size() == scalars, name, " takes ", kernel->inputs,
              " tensors and ", scalars, " numbers, got ", xs.size(), " and ", numbers.size());
  Tensors outputs = compute(*kernel, xs, numbers);
  if (!is_recorded(xs)) return outputs;
  torch::autograd::edge_list edges;
  for (const at::Tensor& x : xs) edges.push_back(torch::autograd::impl::gradient_edge(x));
  const NodePtr node = make_node<Pullback>(shared_from_this(), xs, numbers);
  node->set_next_edges(std::move(edges));
  for (const at::Tensor& y : outputs) torch::autograd::set_history(y, node);
  return outputs;
}

// The wanted gradients of all arguments; false if the way through Python has to be taken.
bool Derivative::compute(const Tensors& all, const Numbers& all_scalars, Tensors& gradients) const {
  if (!function) return false;
  Tensors xs;
  Numbers numbers;
  for (const auto i : arguments) {
    TORCH_INTERNAL_ASSERT(all[i].defined(), "torchad_ext: an input was not saved for its derivative");
    xs.push_back(all[i]);
  }
  for (const auto i : scalars) numbers.push_back(all_scalars[i]);
  std::optional<Tensors> outputs = results.empty() ? Tensors() : function->apply(xs, numbers);
  if (!outputs) return false;
  gradients.resize(wanted);
  if (results.size() < wanted) {
    std::fill(gradients.begin(), gradients.end(), all.back().new_zeros({}).expand_as(all.back()));
  }
  for (size_t k = 0; k < results.size(); ++k) gradients[results[k]] = std::move((*outputs)[k]);
  return true;
}

// A Python object that holds a value of C++.
template <class T>
struct Object {
  PyObject_HEAD T value;
};

template <class T>
T& value_of(PyObject* self) {
  return reinterpret_cast<Object<T>*>(self)->value;
}

template <class T>
PyObject* new_object(PyTypeObject* type, T value) {
  PyObject* self = type->tp_alloc(type, 0);
  if (self) new (&value_of<T>(self)) T(std::move(value));
  return self;
}

template <class T>
void dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  PyTypeObject* type = Py_TYPE(self);
  std::destroy_at(&value_of<T>(self));
  type->tp_free(self);
  Py_DECREF(type);
}

using FunctionPtr = std::shared_ptr<Function>;

// One way of calling an op: which arguments are tensors, which numbers, and the values that the others have.
struct Call {
  py::object function;
  uint64_t tensors, numbers;  // a bit for each parameter
  std::vector<std::pair<Py_ssize_t, py::object>> options;
};

struct Front {
  py::object names, defaults;  // tuples over the parameters; Ellipsis where there is no default
  Py_ssize_t positional;       // how many of them are not keyword-only
  std::vector<Call> calls;
};

PyTypeObject* function_type;

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

PyObject* wrap(std::optional<Tensors> outputs) {
  if (!outputs) Py_RETURN_NOTIMPLEMENTED;
  if (outputs->size() == 1) return THPVariable_Wrap(std::move((*outputs)[0]));
  py::tuple result(outputs->size());
  for (size_t k = 0; k < outputs->size(); ++k) {
    PyObject* output = THPVariable_Wrap(std::move((*outputs)[k]));
    if (!output) return nullptr;
    PyTuple_SET_ITEM(result.ptr(), Py_ssize_t(k), output);
  }
  return result.release().ptr();
}

// Holds the function meanwhile: without the GIL its Python object may go.
PyObject* applied(const FunctionPtr function, const Tensors& xs, const Numbers& numbers) {
  std::optional<Tensors> outputs;
  {
    const py::gil_scoped_release no_gil;
    outputs = function->apply(xs, numbers);
  }
  return wrap(std::move(outputs));
}

constexpr Py_ssize_t most_parameters = 64;

// The argument of each parameter; false where Python has to say what is wrong.
bool bind(const Front& front, PyObject* arguments, PyObject* keywords, std::array<PyObject*, most_parameters>& given) {
  const Py_ssize_t count = PyTuple_GET_SIZE(front.names.ptr()), positional = PyTuple_GET_SIZE(arguments);
  if (positional > front.positional) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    given[i] = i < positional ? PyTuple_GET_ITEM(arguments, i) : PyTuple_GET_ITEM(front.defaults.ptr(), i);
  }
  Py_ssize_t at = 0;
  for (PyObject *key, *value; keywords != Py_None && PyDict_Next(keywords, &at, &key, &value);) {
    Py_ssize_t i = positional;
    while (i < count && PyUnicode_Compare(PyTuple_GET_ITEM(front.names.ptr(), i), key)) ++i;
    if (i == count) return false;
    given[i] = value;
  }
  return std::find(given.begin(), given.begin() + count, Py_Ellipsis) == given.begin() + count;
}

bool are_equal_options(PyObject* a, PyObject* b) {
  return a == b || (PyUnicode_CheckExact(a) && PyUnicode_CheckExact(b) && !PyUnicode_Compare(a, b));
}

// front.call(arguments, keywords): the results, or NotImplemented where the way through Python has to be taken.
PyObject* front_call(PyObject* self, PyObject* args) {
  HANDLE_TH_ERRORS
  const Front& front = value_of<Front>(self);
  std::array<PyObject*, most_parameters> given;
  if (!PyTuple_CheckExact(PyTuple_GET_ITEM(args, 0)) || at::impl::torch_function_mode_enabled() ||
      !bind(front, PyTuple_GET_ITEM(args, 0), PyTuple_GET_ITEM(args, 1), given)) {
    Py_RETURN_NOTIMPLEMENTED;
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(front.names.ptr());
  uint64_t tensors = 0, numbers = 0;
  Tensors xs;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (THPVariable_CheckExact(given[i])) {
      tensors |= uint64_t(1) << i;
      xs.push_back(THPVariable_Unpack(given[i]));
    } else if (PyFloat_CheckExact(given[i]) || PyLong_CheckExact(given[i])) {
      numbers |= uint64_t(1) << i;
    }
  }
  if (xs.empty()) Py_RETURN_NOTIMPLEMENTED;
  for (const Call& call : front.calls) {
    if (call.tensors != tensors || call.numbers != numbers) continue;
    const bool fits = std::all_of(call.options.begin(), call.options.end(), [&](const auto& option) {
      return are_equal_options(given[option.first], option.second.ptr());
    });
    if (!fits) continue;
    Numbers scalars;
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (numbers >> i & 1) scalars.push_back(PyFloat_AsDouble(given[i]));
    }
    if (PyErr_Occurred()) return nullptr;
    return applied(value_of<FunctionPtr>(call.function.ptr()), xs, scalars);
  }
  Py_RETURN_NOTIMPLEMENTED;
  END_HANDLE_TH_ERRORS
}

// front.add(function, tensors, numbers, options): a bit for each tensor and for each number, and pairs of the place and
// the value of what is neither.
PyObject* front_add(PyObject* self, PyObject* args) {
  HANDLE_TH_ERRORS
  PyObject *function, *options;
  unsigned long long tensors, numbers;
  if (!PyArg_ParseTuple(args, "O!KKO!", function_type, &function, &tensors, &numbers, &PyTuple_Type, &options)) {
    return nullptr;
  }
  Front& front = value_of<Front>(self);
  Call call{py::reinterpret_borrow<py::object>(function), tensors, numbers, {}};
  for (const py::handle option : py::reinterpret_borrow<py::tuple>(options)) {
    Py_ssize_t place;
    PyObject* value;
    if (!PyArg_ParseTuple(option.ptr(), "nO", &place, &value)) return nullptr;
    TORCH_CHECK_VALUE(place < PyTuple_GET_SIZE(front.names.ptr()), "an option is at place ", place);
    call.options.emplace_back(place, py::reinterpret_borrow<py::object>(value));
  }
  front.calls.push_back(std::move(call));
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

// Front(names, defaults, positional)
PyObject* front_new(PyTypeObject* type, PyObject* args, PyObject*) {
  HANDLE_TH_ERRORS
  PyObject *names, *defaults;
  Py_ssize_t positional;
  if (!PyArg_ParseTuple(args, "O!O!n", &PyTuple_Type, &names, &PyTuple_Type, &defaults, &positional)) return nullptr;
  const Py_ssize_t count = PyTuple_GET_SIZE(names);
  TORCH_CHECK_VALUE(count <= most_parameters && PyTuple_GET_SIZE(defaults) == count && positional <= count,
                    "a Front takes ", most_parameters, " parameters at the most, and a default or Ellipsis for each");
  const auto held = [](PyObject* x) { return py::reinterpret_borrow<py::object>(x); };
  return new_object(type, Front{held(names), held(defaults), positional, {}});
  END_HANDLE_TH_ERRORS
}

int front_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Front& front = value_of<Front>(self);
  Py_VISIT(front.defaults.ptr());
  for (const Call& call : front.calls) Py_VISIT(call.function.ptr());
  return 0;
}

int front_clear(PyObject* self) {
  Front& front = value_of<Front>(self);
  const auto calls = std::exchange(front.calls, {});
  const py::object defaults = std::exchange(front.defaults, py::tuple());
  front.names = py::tuple();
  return 0;
}

// Function(elementwise, scalars, outputs, name, node_name)
PyObject* function_new(PyTypeObject* type, PyObject* args, PyObject*) {
  HANDLE_TH_ERRORS
  PyObject* elementwise;
  Py_ssize_t scalars, outputs;
  const char *name, *node_name;
  if (!PyArg_ParseTuple(args, "Onnss", &elementwise, &scalars, &outputs, &name, &node_name)) return nullptr;
  return new_object(type, std::make_shared<Function>(elementwise, scalars, outputs, name, node_name));
  END_HANDLE_TH_ERRORS
}

// function.apply(tensors, numbers): the results, or NotImplemented.
PyObject* function_apply(PyObject* self, PyObject* args) {
  HANDLE_TH_ERRORS
  PyObject *tensors, *numbers;
  if (!PyArg_ParseTuple(args, "OO!", &tensors, &PyTuple_Type, &numbers)) return nullptr;
  Tensors xs;
  for (const py::handle x : py::reinterpret_borrow<py::sequence>(tensors)) {
    TORCH_CHECK_TYPE(THPVariable_Check(x.ptr()), "apply takes tensors");
    xs.push_back(THPVariable_Unpack(x.ptr()));
  }
  Numbers scalars;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(numbers); ++i) {
    scalars.push_back(PyFloat_AsDouble(PyTuple_GET_ITEM(numbers, i)));
  }
  if (PyErr_Occurred()) return nullptr;
  TORCH_CHECK_VALUE(!xs.empty(), "apply takes a tensor at the least");
  return applied(value_of<FunctionPtr>(self), xs, scalars);
  END_HANDLE_TH_ERRORS
}

// function.set_kernel(device, dtype, address): 0 for the CPU and 1 for CUDA, a torch.dtype's number, a Kernel.
PyObject* function_set_kernel(PyObject* self, PyObject* args) {
  int device, dtype;
  unsigned long long address;
  if (!PyArg_ParseTuple(args, "iiK", &device, &dtype, &address)) return nullptr;
  const int place = Function::place(at::ScalarType(dtype));
  if (place < 0 || device < 0 || device >= devices) {
    PyErr_SetString(PyExc_ValueError, "no kernel is made for this device and dtype");
    return nullptr;
  }
  auto& kernel = value_of<FunctionPtr>(self)->kernels[device][place];
  kernel.store(reinterpret_cast<const Kernel*>(address), std::memory_order_release);
  Py_RETURN_NONE;
}

// While a graph holds the Function too, its Elementwise is in use.
int function_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const auto& function = value_of<FunctionPtr>(self);
  if (function && function.use_count() == 1) Py_VISIT(function->elementwise);
  return 0;
}

int function_clear(PyObject* self) {
  const auto& function = value_of<FunctionPtr>(self);
  if (function.use_count() == 1) Py_CLEAR(function->elementwise);
  return 0;
}

// set_run(device, address): how kernels are run on a device, a RunKernel.
PyObject* set_run(PyObject*, PyObject* args) {
  HANDLE_TH_ERRORS
  int device;
  unsigned long long address;
  if (!PyArg_ParseTuple(args, "iK", &device, &address)) return nullptr;
  run_kernel.at(device).store(reinterpret_cast<RunKernel>(address), std::memory_order_release);
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

// is_wanted(tensor): does the pass under way use the gradient of this tensor of the node whose backward is running?
PyObject* is_wanted(PyObject*, PyObject* tensor) {
  HANDLE_TH_ERRORS
  const size_t place = PyLong_AsSize_t(tensor);
  if (PyErr_Occurred()) return nullptr;
  const NodePtr node = torch::autograd::get_current_node();
  return PyBool_FromLong(!node || node->task_should_compute_output(place));
  END_HANDLE_TH_ERRORS
}

}  // namespace
}  // namespace torchad_ext

#include "quadratic_form.h"

namespace torchad_ext {
namespace {

template <class T>
PyType_Spec type_spec(const char* name, PyType_Slot* slots) {
  return {name, sizeof(Object<T>), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};
}

PyMethodDef function_methods[] = {
    {"apply", function_apply, METH_VARARGS, "apply(tensors, numbers): the results, or NotImplemented"},
    {"set_kernel", function_set_kernel, METH_VARARGS, "set_kernel(device, dtype, address)"},
    {}};
PyType_Slot function_slots[] = {{Py_tp_new, reinterpret_cast<void*>(function_new)},
                                {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<FunctionPtr>)},
                                {Py_tp_traverse, reinterpret_cast<void*>(function_traverse)},
                                {Py_tp_clear, reinterpret_cast<void*>(function_clear)},
                                {Py_tp_methods, function_methods},
                                {}};
PyMethodDef front_methods[] = {
    {"call", front_call, METH_VARARGS, "call(arguments, keywords): the results, or NotImplemented"},
    {"add", front_add, METH_VARARGS, "add(function, tensors, numbers, options)"},
    {}};
PyType_Slot front_slots[] = {{Py_tp_new, reinterpret_cast<void*>(front_new)},
                             {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<Front>)},
                             {Py_tp_traverse, reinterpret_cast<void*>(front_traverse)},
                             {Py_tp_clear, reinterpret_cast<void*>(front_clear)},
                             {Py_tp_methods, front_methods},
                             {}};
PyMethodDef module_methods[] = {
    {"set_run", set_run, METH_VARARGS, "set_run(device, address)"},
    {"is_wanted", is_wanted, METH_O, "is_wanted(tensor)"},
    {"quadratic_form", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(quadratic_form)), METH_FASTCALL,
     "quadratic_form(x, A): the result, or NotImplemented"},
    {"set_form_gradients", set_form_gradients, METH_O, "set_form_gradients(function)"},
    {}};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "torchad_ext_eager", "Calls of pointwise ops on plain tensors.", -1,
                      module_methods};

}  // namespace
}  // namespace torchad_ext

PyMODINIT_FUNC PyInit_torchad_ext_eager() {
  using namespace torchad_ext;
  PyObject* result = PyModule_Create(&module);
  auto function_spec = type_spec<FunctionPtr>("torchad_ext_eager.Function", function_slots);
  auto front_spec = type_spec<Front>("torchad_ext_eager.Front", front_slots);
  function_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&function_spec));
  PyObject* front_type = PyType_FromSpec(&front_spec);
  if (!result || !function_type || !front_type) return nullptr;
  PyModule_AddObject(result, "Function", Py_NewRef(reinterpret_cast<PyObject*>(function_type)));
  PyModule_AddObject(result, "Front", front_type);
  return result;
}
