// Eager mode in C++: the extension module, whose Functions and fronts Python calls on plain tensors.
//
// This folder alone needs the headers of PyTorch and of Python that it runs with, not the stable ABI. Their parsing is
// two thirds of the time to compile it, so it is one translation unit.
#include "function.h"

#include <ATen/PythonTorchFunctionTLS.h>

#include "python.h"
#include "quadratic_form.h"

namespace torchad_ext {
namespace {

// One way of calling an op: which arguments are tensors, and where its numbers come from.
struct Call {
  py::object function;
  Py_ssize_t arguments;
  uint64_t tensors;                                    // a bit for each argument
  std::vector<std::pair<Py_ssize_t, double>> numbers;  // the place among the arguments, or -1 and a default
};

using Calls = std::vector<Call>;

PyTypeObject* function_type;

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

// front(arguments): the results, or NotImplemented where the way through Python has to be taken.
PyObject* front_call(PyObject* self, PyObject* arguments) {
  HANDLE_TH_ERRORS
  const Py_ssize_t count = PyTuple_GET_SIZE(arguments);
  if (count > 64 || at::impl::torch_function_mode_enabled()) Py_RETURN_NOTIMPLEMENTED;
  uint64_t tensors = 0;
  Tensors xs;
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* x = PyTuple_GET_ITEM(arguments, i);
    if (THPVariable_CheckExact(x)) {
      tensors |= uint64_t(1) << i;
      xs.push_back(THPVariable_Unpack(x));
    } else if (!PyFloat_CheckExact(x) && !PyLong_CheckExact(x)) {
      Py_RETURN_NOTIMPLEMENTED;
    }
  }
  if (xs.empty()) Py_RETURN_NOTIMPLEMENTED;
  for (const Call& call : value_of<Calls>(self)) {
    if (call.arguments != count || call.tensors != tensors) continue;
    Numbers scalars;
    for (const auto& [place, number] : call.numbers) {
      scalars.push_back(place < 0 ? number : PyFloat_AsDouble(PyTuple_GET_ITEM(arguments, place)));
    }
    if (PyErr_Occurred()) return nullptr;
    return applied(value_of<FunctionPtr>(call.function.ptr()), xs, scalars);
  }
  Py_RETURN_NOTIMPLEMENTED;
  END_HANDLE_TH_ERRORS
}

// front.add(function, arguments, tensors, numbers)
PyObject* front_add(PyObject* self, PyObject* args) {
  HANDLE_TH_ERRORS
  PyObject* function;
  Py_ssize_t arguments;
  unsigned long long tensors;
  PyObject* numbers;
  if (!PyArg_ParseTuple(args, "O!nKO!", function_type, &function, &arguments, &tensors, &PyTuple_Type, &numbers)) {
    return nullptr;
  }
  Call call{py::reinterpret_borrow<py::object>(function), arguments, tensors, {}};
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(numbers); ++i) {
    Py_ssize_t place;
    double number;
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(numbers, i), "nd", &place, &number)) return nullptr;
    TORCH_CHECK_VALUE(place < arguments, "a number is at place ", place, " of ", arguments, " arguments");
    call.numbers.emplace_back(place, number);
  }
  value_of<Calls>(self).push_back(std::move(call));
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

PyObject* front_new(PyTypeObject* type, PyObject*, PyObject*) { return new_object(type, Calls()); }

int front_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  for (const Call& call : value_of<Calls>(self)) Py_VISIT(call.function.ptr());
  return 0;
}

int front_clear(PyObject* self) {
  std::exchange(value_of<Calls>(self), {});
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
PyMethodDef front_methods[] = {{"call", front_call, METH_O, "call(arguments): the results, or NotImplemented"},
                               {"add", front_add, METH_VARARGS, "add(function, arguments, tensors, numbers)"},
                               {}};
PyType_Slot front_slots[] = {{Py_tp_new, reinterpret_cast<void*>(front_new)},
                             {Py_tp_dealloc, reinterpret_cast<void*>(dealloc<Calls>)},
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
  auto front_spec = type_spec<Calls>("torchad_ext_eager.Front", front_slots);
  function_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&function_spec));
  PyObject* front_type = PyType_FromSpec(&front_spec);
  if (!result || !function_type || !front_type) return nullptr;
  PyModule_AddObject(result, "Function", Py_NewRef(reinterpret_cast<PyObject*>(function_type)));
  PyModule_AddObject(result, "Front", front_type);
  return result;
}
