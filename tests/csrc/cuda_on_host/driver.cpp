// The functions of the CUDA driver that csrc/cuda/driver.h asks for. An image is the path of a library of kernels that
// were compiled for the host; anything else is code for another GPU.
#include <dlfcn.h>
#include <stdlib.h>

#include <string>

namespace {

enum Error { success = 0, invalid_value = 1, invalid_context = 201, no_binary_for_gpu = 209, not_found = 500 };

char primary_context;
thread_local void* current_context = nullptr;

}  // namespace

extern "C" {

int cuGetErrorName(int error, const char** name) {
  *name = error == invalid_value       ? "CUDA_ERROR_INVALID_VALUE"
          : error == no_binary_for_gpu ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
                                       : "CUDA_ERROR_UNKNOWN";
  return success;
}
int cuGetErrorString(int, const char** text) {
  *text = "as the test wants it";
  return success;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return success;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &primary_context;
  return success;
}
int cuCtxGetCurrent(void** context) {
  *context = current_context;
  return success;
}
int cuCtxSetCurrent(void* context) {
  current_context = context;
  return success;
}
int cuThreadExchangeStreamCaptureMode(int*) { return success; }

int cuModuleLoadData(void** module, const void* image) {
  *module = dlopen(static_cast<const char*>(image), RTLD_NOW | RTLD_LOCAL);
  return *module ? success : no_binary_for_gpu;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = dlsym(module, (std::string(name) + "_on_host").c_str());
  return *function ? success : not_found;
}
int cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned,
                   void*, void** arguments, void**) {
  if (current_context == nullptr) return invalid_context;
  if (getenv("FAILING_LAUNCHES")) return invalid_value;
  reinterpret_cast<void (*)(int, int, void**)>(function)(int(blocks), int(threads), arguments);
  return success;
}
}
