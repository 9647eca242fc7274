// Values of C++ as Python objects, and Python's errors as exceptions of C++.
#pragma once

#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

namespace torchad_ext {
namespace {

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

// Lets other threads run Python meanwhile, where that is not over sooner than the GIL is released.
class WithoutGil {
 public:
  explicit WithoutGil(const Tensors& xs) {
    const auto is_small = [](const at::Tensor& x) {
      const bool is_dense = x.is_cpu() && !x.is_nested() && !x.unsafeGetTensorImpl()->has_symbolic_sizes_strides();
      return is_dense && x.numel() <= few;
    };
    if (!std::all_of(xs.begin(), xs.end(), is_small)) released_.emplace();
  }

 private:
  static constexpr int64_t few = 256;
  std::optional<py::gil_scoped_release> released_;
};

template <class Numbers>
py::tuple tuple_of(const Numbers& numbers) {
  py::tuple result(numbers.size());
  for (size_t i = 0; i < numbers.size(); ++i) result[i] = py::int_(numbers[i]);
  return result;
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

template <class T>
PyType_Spec type_spec(const char* name, PyType_Slot* slots) {
  return {name, sizeof(Object<T>), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};
}

}  // namespace
}  // namespace torchad_ext
