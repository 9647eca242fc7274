// Eager mode in C++: the extension module, whose Functions and fronts Python calls on plain tensors.
//
// This folder alone needs the headers of PyTorch and of Python that it runs with, not the stable ABI. Their parsing is
// two thirds of the time to compile it, so it is one translation unit.
#include "function.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/ops/_unsafe_view.h>

#include "python.h"
#include "quadratic_form.h"
#include "rows.h"

namespace torchad_ext {
namespace {

// One way of calling an op: which arguments are tensors, which any numbers, and the values that the others have.
struct Call {
  py::object function;
  uint64_t tensors, numbers, chosen;                   // a bit for each parameter
  std::shared_ptr<const std::vector<uint64_t>> reads;  // the tensors that each result depends on
  std::vector<std::pair<Py_ssize_t, py::object>> options;
};

struct Front {
  py::object names, defaults;  // tuples over the parameters; Ellipsis where there is no default
  Py_ssize_t positional;       // how many of them are not keyword-only
  std::vector<Call> calls;
  std::vector<RowCall> row_calls;
};

PyTypeObject *function_type, *row_function_type;

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
PyObject* applied(const FunctionPtr function, const Tensors& xs, const Numbers& numbers, Broadcast broadcast) {
  std::optional<Tensors> outputs;
  {
    const WithoutGil no_gil(xs);
    outputs = function->apply(xs, numbers, std::move(broadcast));
  }
  return wrap(std::move(outputs));
}

// The same of rows; results whose bits are set lose their last dimension, of size 1.
PyObject* applied(const RowFunctionPtr function, const Tensors& xs, const Numbers& numbers, const Shape& shape,
                  const Known& known, uint64_t dropped) {
  std::optional<Tensors> results;
  {
    const WithoutGil no_gil(xs);
    results = function->apply(xs, numbers, shape, known);
    for (size_t k = 0; results && k < results->size(); ++k) {
      at::Tensor& y = (*results)[k];
      // No view: PyTorch lets nobody write in place to one that was made under no_grad.
      if (dropped >> k & 1) y = at::_unsafe_view(y, y.sizes().slice(0, y.dim() - 1));
    }
  }
  return wrap(std::move(results));
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

// front.call(arguments, keywords): the results, or NotImplemented where the way through Python has to be taken.
PyObject* front_call(PyObject* self, PyObject* const* arguments, Py_ssize_t) {
  HANDLE_TH_ERRORS
  const Front& front = value_of<Front>(self);
  std::array<PyObject*, most_parameters> given;
  if (!PyTuple_CheckExact(arguments[0]) || at::impl::torch_function_mode_enabled() ||
      !bind(front, arguments[0], arguments[1], given)) {
    Py_RETURN_NOTIMPLEMENTED;
  }
  const Py_ssize_t count = PyTuple_GET_SIZE(front.names.ptr());
  for (const RowCall& call : front.row_calls) {
    Tensors xs;
    Numbers numbers;
    Shape shape;
    if (fits(call, given.data(), xs, numbers, shape)) {
      if (PyErr_Occurred()) return nullptr;
      return applied(value_of<RowFunctionPtr>(call.function.ptr()), xs, numbers, shape, {}, call.dropped);
    }
  }
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
    if (call.tensors != tensors || call.numbers != (numbers & ~call.chosen)) continue;
    const bool fits = std::all_of(call.options.begin(), call.options.end(), [&](const auto& option) {
      return are_equal_options(given[option.first], option.second.ptr());
    });
    if (!fits) continue;
    Numbers scalars;
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (call.numbers >> i & 1) scalars.push_back(PyFloat_AsDouble(given[i]));
    }
    if (PyErr_Occurred()) return nullptr;
    return applied(value_of<FunctionPtr>(call.function.ptr()), xs, scalars, {{}, {}, call.reads});
  }
  Py_RETURN_NOTIMPLEMENTED;
  END_HANDLE_TH_ERRORS
}

// front.add(function, tensors, numbers, reads, options): a bit for each tensor and for each number, the tensors that
// each result depends on as bits too, and pairs of the place and the value of what is neither.
PyObject* front_add(PyObject* self, PyObject* args) {
  HANDLE_TH_ERRORS
  PyObject *function, *reads, *options;
  unsigned long long tensors, numbers;
  if (!PyArg_ParseTuple(args, "O!KKO!O!", function_type, &function, &tensors, &numbers, &PyTuple_Type, &reads,
                        &PyTuple_Type, &options)) {
    return nullptr;
  }
  Front& front = value_of<Front>(self);
  Call call{py::reinterpret_borrow<py::object>(function), tensors, numbers, 0, nullptr, {}};
  std::vector<uint64_t> of_results;
  for (const py::handle read : py::reinterpret_borrow<py::tuple>(reads)) of_results.push_back(read.cast<uint64_t>());
  call.reads = std::make_shared<const std::vector<uint64_t>>(std::move(of_results));
  for (const py::handle option : py::reinterpret_borrow<py::tuple>(options)) {
    Py_ssize_t place;
    PyObject* value;
    if (!PyArg_ParseTuple(option.ptr(), "nO", &place, &value)) return nullptr;
    TORCH_CHECK_VALUE(place < PyTuple_GET_SIZE(front.names.ptr()), "an option is at place ", place);
    call.chosen |= uint64_t(1) << place;
    call.options.emplace_back(place, py::reinterpret_borrow<py::object>(value));
  }
  front.calls.push_back(std::move(call));
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

// front.add_rows(function, dtype, arguments, options, numbers, dropped, dims): the number of a dtype; an Argument and
// the value of an option for each parameter; for each scalar a pair of its parameter, or -1, and its value; a bit for
// each result without a last dimension; how many dimensions tensors have, 0 for any number.
PyObject* front_add_rows(PyObject* self, PyObject* args) {
  HANDLE_TH_ERRORS
  PyObject *function, *arguments, *options, *numbers;
  int dtype;
  unsigned long long dropped;
  Py_ssize_t dims;
  if (!PyArg_ParseTuple(args, "O!iO!O!O!Kn", row_function_type, &function, &dtype, &PyTuple_Type, &arguments,
                        &PyTuple_Type, &options, &PyTuple_Type, &numbers, &dropped, &dims)) {
    return nullptr;
  }
  Front& front = value_of<Front>(self);
  RowCall call{py::reinterpret_borrow<py::object>(function), at::ScalarType(dtype), {}, {}, {}, dropped, size_t(dims)};
  for (const py::handle argument : py::reinterpret_borrow<py::tuple>(arguments)) {
    call.arguments.push_back(Argument(argument.cast<int>()));
  }
  for (const py::handle option : py::reinterpret_borrow<py::tuple>(options)) {
    call.options.push_back(py::reinterpret_borrow<py::object>(option));
  }
  call.numbers = py::handle(numbers).cast<std::vector<std::pair<int64_t, double>>>();
  const size_t count = PyTuple_GET_SIZE(front.names.ptr());
  TORCH_CHECK_VALUE(call.arguments.size() == count && call.options.size() == count, "one of each parameter");
  front.row_calls.push_back(std::move(call));
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
  return new_object(type, Front{held(names), held(defaults), positional, {}, {}});
  END_HANDLE_TH_ERRORS
}

int front_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const Front& front = value_of<Front>(self);
  Py_VISIT(front.defaults.ptr());
  for (const Call& call : front.calls) Py_VISIT(call.function.ptr());
  for (const RowCall& call : front.row_calls) Py_VISIT(call.function.ptr());
  return 0;
}

int front_clear(PyObject* self) {
  Front& front = value_of<Front>(self);
  const auto calls = std::exchange(front.calls, {});
  const auto row_calls = std::exchange(front.row_calls, {});
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

Shape shape_of(py::handle sizes) {
  Shape shape;
  for (const py::handle size : py::reinterpret_borrow<py::sequence>(sizes)) shape.push_back(size.cast<int64_t>());
  return shape;
}

Tensors tensors_of(py::handle tensors) {
  Tensors xs;
  for (const py::handle x : py::reinterpret_borrow<py::sequence>(tensors)) {
    TORCH_CHECK_TYPE(THPVariable_Check(x.ptr()), "apply takes tensors");
    xs.push_back(THPVariable_Unpack(x.ptr()));
  }
  return xs;
}

// Of a tuple; a Python error may be set.
Numbers numbers_of(PyObject* numbers) {
  Numbers scalars;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(numbers); ++i) {
    scalars.push_back(PyFloat_AsDouble(PyTuple_GET_ITEM(numbers, i)));
  }
  return scalars;
}

// function.apply(tensors, numbers, shape, results): the results, or NotImplemented; for tensors that broadcast also
// their shape and those of the results.
PyObject* function_apply(PyObject* self, PyObject* args) {
  HANDLE_TH_ERRORS
  PyObject *tensors, *numbers, *shape = nullptr, *results = nullptr;
  if (!PyArg_ParseTuple(args, "OO!|O!O!", &tensors, &PyTuple_Type, &numbers, &PyTuple_Type, &shape, &PyTuple_Type,
                        &results)) {
    return nullptr;
  }
  const Tensors xs = tensors_of(tensors);
  const Numbers scalars = numbers_of(numbers);
  if (PyErr_Occurred()) return nullptr;
  TORCH_CHECK_VALUE(!xs.empty(), "apply takes a tensor at the least");
  Broadcast broadcast;
  if (results != nullptr) {
    broadcast.shape = shape_of(shape);
    for (const py::handle result : py::reinterpret_borrow<py::tuple>(results)) {
      broadcast.results.push_back(shape_of(result));
    }
  }
  return applied(value_of<FunctionPtr>(self), xs, scalars, std::move(broadcast));
  END_HANDLE_TH_ERRORS
}

// RowFunction(function, scalars, outputs, name, node_name)
PyObject* row_function_new(PyTypeObject* type, PyObject* args, PyObject*) {
  HANDLE_TH_ERRORS
  PyObject* function;
  Py_ssize_t scalars, outputs;
  const char *name, *node_name;
  if (!PyArg_ParseTuple(args, "Onnss", &function, &scalars, &outputs, &name, &node_name)) return nullptr;
  return new_object(type, std::make_shared<RowFunction>(function, scalars, outputs, name, node_name));
  END_HANDLE_TH_ERRORS
}

// function.apply(tensors, numbers, shape, names, values): the results, or NotImplemented.
PyObject* row_function_apply(PyObject* self, PyObject* args) {
  HANDLE_TH_ERRORS
  PyObject *tensors, *numbers, *shape, *names, *values;
  if (!PyArg_ParseTuple(args, "OO!OOO", &tensors, &PyTuple_Type, &numbers, &shape, &names, &values)) return nullptr;
  const Tensors xs = tensors_of(tensors);
  const Numbers scalars = numbers_of(numbers);
  if (PyErr_Occurred()) return nullptr;
  const Shape whole = shape_of(shape);
  Known known;
  for (const py::handle name : py::reinterpret_borrow<py::sequence>(names)) {
    known.names.push_back(name.cast<int64_t>());
  }
  known.values = tensors_of(values);
  return applied(value_of<RowFunctionPtr>(self), xs, scalars, whole, known, /*dropped=*/0);
  END_HANDLE_TH_ERRORS
}

// function.set_kernel(dtype, is_short, address): a torch.dtype's number, and a RowKernel of short rows or of longer
// ones.
PyObject* row_function_set_kernel(PyObject* self, PyObject* args) {
  int dtype, is_short;
  unsigned long long address;
  if (!PyArg_ParseTuple(args, "ipK", &dtype, &is_short, &address)) return nullptr;
  const int place = Function::place(at::ScalarType(dtype));
  if (place < 0) {
    PyErr_SetString(PyExc_ValueError, "no kernel is made for this dtype");
    return nullptr;
  }
  auto& kernel = value_of<RowFunctionPtr>(self)->kernels[is_short != 0][place];
  kernel.store(reinterpret_cast<const RowKernel*>(address), std::memory_order_release);
  Py_RETURN_NONE;
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

// While a graph holds the function too, its Python object is in use.
template <class Pointer>
int function_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  const auto& function = value_of<Pointer>(self);
  if (function && function.use_count() == 1) Py_VISIT(function->elementwise);
  return 0;
}

template <class Pointer>
int function_clear(PyObject* self) {
  const auto& function = value_of<Pointer>(self);
  if (function.use_count() == 1) Py_CLEAR(function->elementwise);
  return 0;
}

// set_run_rows(address): how kernels of rows are run, a RunKernel.
PyObject* set_run_rows(PyObject*, PyObject* address) {
  const unsigned long long number = PyLong_AsUnsignedLongLong(address);
  if (PyErr_Occurred()) return nullptr;
  run_rows.store(reinterpret_cast<RunKernel>(number), std::memory_order_release);
  Py_RETURN_NONE;
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

PyMethodDef function_methods[] = {
    {"apply", function_apply, METH_VARARGS, "apply(tensors, numbers, shape, results): the results, or NotImplemented"},
    {"set_kernel", function_set_kernel, METH_VARARGS, "set_kernel(device, dtype, address)"},
    {}};
PyType_Slot function_slots[] = {{Py_tp_new, reinterpret_cast<void*>(function_new)},
                                {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<FunctionPtr>)},
                                {Py_tp_traverse, reinterpret_cast<void*>(function_traverse<FunctionPtr>)},
                                {Py_tp_clear, reinterpret_cast<void*>(function_clear<FunctionPtr>)},
                                {Py_tp_methods, function_methods},
                                {}};
PyMethodDef row_function_methods[] = {
    {"apply", row_function_apply, METH_VARARGS,
     "apply(tensors, numbers, shape, names, values): the results, or NotImplemented"},
    {"set_kernel", row_function_set_kernel, METH_VARARGS, "set_kernel(dtype, is_short, address)"},
    {}};
PyType_Slot row_function_slots[] = {{Py_tp_new, reinterpret_cast<void*>(row_function_new)},
                                    {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<RowFunctionPtr>)},
                                    {Py_tp_traverse, reinterpret_cast<void*>(function_traverse<RowFunctionPtr>)},
                                    {Py_tp_clear, reinterpret_cast<void*>(function_clear<RowFunctionPtr>)},
                                    {Py_tp_methods, row_function_methods},
                                    {}};
PyMethodDef front_methods[] = {
    {"call", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(front_call)), METH_FASTCALL,
     "call(arguments, keywords): the results, or NotImplemented"},
    {"add_rows", front_add_rows, METH_VARARGS, "add_rows(function, dtype, arguments, options, numbers, dropped, dims)"},
    {"add", front_add, METH_VARARGS, "add(function, tensors, numbers, reads, options)"},
    {}};
PyType_Slot front_slots[] = {{Py_tp_new, reinterpret_cast<void*>(front_new)},
                             {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<Front>)},
                             {Py_tp_traverse, reinterpret_cast<void*>(front_traverse)},
                             {Py_tp_clear, reinterpret_cast<void*>(front_clear)},
                             {Py_tp_methods, front_methods},
                             {}};
PyMethodDef module_methods[] = {
    {"set_run", set_run, METH_VARARGS, "set_run(device, address)"},
    {"set_run_rows", set_run_rows, METH_O, "set_run_rows(address)"},
    {"is_wanted", is_wanted, METH_O, "is_wanted(tensor)"},
    {"quadratic_form", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(quadratic_form)), METH_FASTCALL,
     "quadratic_form(x, A): the result, or NotImplemented"},
    {"set_form_gradients", set_form_gradients, METH_O, "set_form_gradients(function)"},
    {}};
PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "torchad_ext_eager",
                      "Calls of pointwise ops on plain tensors.",
                      -1,
                      module_methods,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace
}  // namespace torchad_ext

PyMODINIT_FUNC PyInit_torchad_ext_eager() {
  using namespace torchad_ext;
  PyObject* result = PyModule_Create(&module);
  auto function_spec = type_spec<FunctionPtr>("torchad_ext_eager.Function", function_slots);
  auto front_spec = type_spec<Front>("torchad_ext_eager.Front", front_slots);
  auto row_spec = type_spec<RowFunctionPtr>("torchad_ext_eager.RowFunction", row_function_slots);
  row_function_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&row_spec));
  function_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&function_spec));
  PyObject* front_type = PyType_FromSpec(&front_spec);
  if (!result || !function_type || !front_type || !row_function_type) return nullptr;
  PyModule_AddObject(result, "Function", Py_NewRef(reinterpret_cast<PyObject*>(function_type)));
  PyModule_AddObject(result, "Front", front_type);
  PyModule_AddObject(result, "RowFunction", Py_NewRef(reinterpret_cast<PyObject*>(row_function_type)));
  return result;
}
