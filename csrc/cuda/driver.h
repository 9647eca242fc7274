// The CUDA driver: images of machine code, and launches that report their failure.
//
// What is used of the driver is declared here and found when the first kernel runs, so that this is compiled, and
// loaded, where there is no CUDA.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace torchad_ext {

using torch::stable::accelerator::DeviceGuard;

// A function of the driver, of whatever type.
struct Symbol {
  void* address;

  explicit Symbol(const char* name) {
    static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
    STD_TORCH_CHECK(library != nullptr, "torchad_ext: the CUDA driver, libcuda.so.1, could not be loaded");
    address = dlsym(library, name);
    STD_TORCH_CHECK(address != nullptr, "torchad_ext: the CUDA driver is too old: it has no ", name);
  }

  template <class Function>
  operator Function*() const {
    return reinterpret_cast<Function*>(address);
  }
};

// Each function returns an error, 0 for none.
struct Driver {
  int (*cuGetErrorName)(int error, const char** name) = Symbol("cuGetErrorName");
  int (*cuGetErrorString)(int error, const char** text) = Symbol("cuGetErrorString");
  int (*cuDeviceGet)(int* device, int ordinal) = Symbol("cuDeviceGet");
  int (*cuDevicePrimaryCtxRetain)(void** context, int device) = Symbol("cuDevicePrimaryCtxRetain");
  int (*cuCtxGetCurrent)(void** context) = Symbol("cuCtxGetCurrent");
  int (*cuCtxSetCurrent)(void* context) = Symbol("cuCtxSetCurrent");
  int (*cuThreadExchangeStreamCaptureMode)(int* mode) = Symbol("cuThreadExchangeStreamCaptureMode");
  int (*cuModuleLoadData)(void** module, const void* image) = Symbol("cuModuleLoadData");
  int (*cuModuleGetFunction)(void** function, void* module, const char* name) = Symbol("cuModuleGetFunction");
  int (*cuLaunchKernel)(void* function, unsigned blocks_x, unsigned blocks_y, unsigned blocks_z, unsigned threads_x,
                        unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void* stream, void** arguments,
                        void** extra) = Symbol("cuLaunchKernel");

  static const Driver& get() {
    static const Driver driver;
    return driver;
  }
};

// An error may be that of an earlier kernel, which CUDA reports when it hears of it.
inline void check(int error, const char* doing, const std::string& kernel) {
  if (error == 0) return;
  const char *name = nullptr, *text = nullptr;
  Driver::get().cuGetErrorName(error, &name);
  Driver::get().cuGetErrorString(error, &text);
  STD_TORCH_CHECK(false, "torchad_ext: ", name ? name : std::to_string(error).c_str(), " (",
                  text ? text : "unknown to the driver", ") at the ", doing, " of ", kernel,
                  "; CUDA_LAUNCH_BLOCKING=1 in the environment shows whether an earlier kernel failed");
}

// Can it be read in accesses of 16 bytes?
inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

inline int64_t blocks_for(int64_t work, int64_t per_block) {
  constexpr int64_t most = int64_t(1) << 22;
  return std::min((work + per_block - 1) / per_block, most);
}

// Machine code: the same kernels for each of several kinds of GPU. It is loaded on a device when the first of its
// kernels is wanted there.
class Module {
 public:
  explicit Module(std::vector<std::string> images) : images_(std::move(images)) {}

  // A kernel on the current device.
  void* function(int device, const std::string& name) {
    const std::lock_guard<std::mutex> lock(mutex_);
    void*& module = loaded_[device];
    if (module == nullptr) module = load(name);
    void* function = nullptr;
    check(Driver::get().cuModuleGetFunction(&function, module, name.c_str()), "search", name);
    return function;
  }

 private:
  // The first image that this kind of GPU takes.
  void* load(const std::string& name) const {
    constexpr int relaxed = 2;  // a graph that is being captured does not mind
    int mode = relaxed;
    check(Driver::get().cuThreadExchangeStreamCaptureMode(&mode), "loading", name);
    void* module = nullptr;
    int error = 0;
    for (const std::string& image : images_) {
      error = Driver::get().cuModuleLoadData(&module, image.data());
      if (error == 0) break;
    }
    Driver::get().cuThreadExchangeStreamCaptureMode(&mode);
    check(error, "loading", name);
    return module;
  }

  const std::vector<std::string> images_;
  std::mutex mutex_;
  std::map<int, void*> loaded_;
};

// A kernel by its name in a module.
class Entry {
 public:
  Entry(Module& module, std::string name) : module_(module), name_(std::move(name)) {}

  // Runs it on PyTorch's current stream of a device, which is the current one. The arguments are pointers to what the
  // kernel takes; `op` is named in messages.
  void launch(const char* op, int device, int64_t blocks, int threads,
              std::initializer_list<const void*> arguments) const {
    need_context(device, op);
    void* function = found_.at(device).load(std::memory_order_acquire);
    if (function == nullptr) {
      function = module_.function(device, name_);
      found_[device].store(function, std::memory_order_release);
    }
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    const auto pointers = const_cast<void**>(const_cast<const void* const*>(arguments.begin()));
    check(Driver::get().cuLaunchKernel(function, unsigned(blocks), 1, 1, unsigned(threads), 1, 1, 0, stream, pointers,
                                       nullptr),
          "launch", op);
  }

 private:
  // CUDA's runtime gives a thread the context of its device, the one that PyTorch uses; the driver does not.
  static void need_context(int device, const char* op) {
    const Driver& driver = Driver::get();
    void* context = nullptr;
    check(driver.cuCtxGetCurrent(&context), "launch", op);
    if (context != nullptr) return;
    int handle = 0;
    check(driver.cuDeviceGet(&handle, device), "launch", op);
    check(driver.cuDevicePrimaryCtxRetain(&context, handle), "launch", op);
    check(driver.cuCtxSetCurrent(context), "launch", op);
  }

  Module& module_;
  const std::string name_;
  mutable std::array<std::atomic<void*>, 128> found_{};  // more devices than PyTorch knows
};

}  // namespace torchad_ext
