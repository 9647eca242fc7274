// Nodes of the autograd graph, and what each of them computes as a call in the graph of compiled autograd.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <memory>
#include <optional>
#include <type_traits>
#include <vector>

namespace torchad_ext {
namespace {

namespace dynamo = torch::dynamo::autograd;
using torch::autograd::variable_list;
using Tensors = c10::SmallVector<at::Tensor, 4>;
using NodePtr = decltype(torch::autograd::Edge::function);

// Before PyTorch 2.13 the graph holds its nodes by shared_ptr.
constexpr bool nodes_are_shared = std::is_same_v<NodePtr, std::shared_ptr<torch::autograd::Node>>;

template <class N, class... Arguments>
NodePtr make_node(Arguments&&... arguments) {
  if constexpr (nodes_are_shared) {
    return NodePtr(new N(std::forward<Arguments>(arguments)...), [](auto* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<N>(std::forward<Arguments>(arguments)...);
  }
}

// The node as the graph holds it. Pointer is an argument because one branch compiles for each kind of pointer.
template <class N, class Pointer = NodePtr>
Pointer held(N* node) {
  if constexpr (nodes_are_shared) {
    return node->shared_from_this();
  } else {
    return Pointer::reclaim_copy(node);
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

}  // namespace
}  // namespace torchad_ext
