// torch.ops.llmtrain_native: what follows the backward, on tensors. They are changed in place, and
// their versions are not, as with torch's fused optimizers.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <vector>

#include "update.h"

namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;

float* floats_of(const Tensor& x, int64_t count) {
  TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == at::kFloat && x.is_contiguous() &&
                  x.numel() == count,
              "expected a dense tensor of ", count, " floats on the CPU");
  return static_cast<float*>(x.data_ptr());
}

at::BFloat16* halves_of(const Tensor& x, int64_t count) {
  TORCH_CHECK(x.device().is_cpu() && x.scalar_type() == at::kBFloat16 && x.is_contiguous() &&
                  x.numel() == count,
              "expected a dense tensor of ", count, " bf16 numbers on the CPU");
  return static_cast<at::BFloat16*>(x.data_ptr());
}

at::BFloat16* copy_of(const std::optional<Tensor>& copy, int64_t count) {
  return copy.has_value() ? halves_of(*copy, count) : nullptr;
}

double sum_of_squares(const Tensors& tensors) {
  std::vector<llmtrain::Elements> elements;
  for (const Tensor& x : tensors) elements.push_back({floats_of(x, x.numel()), x.numel()});
  return llmtrain::sum_of_squares(elements);
}

void adamw(const Tensors& weights, const Tensors& gradients, const Tensors& means,
           const Tensors& mean_squares, const Tensors& steps,
           const std::vector<std::optional<Tensor>>& copies, double gradient_factor, double lr,
           double beta1, double beta2, double weight_decay, double eps) {
  const size_t n = weights.size();
  TORCH_CHECK(gradients.size() == n && means.size() == n && mean_squares.size() == n &&
                  steps.size() == n && copies.size() == n,
              "lists of other lengths");
  std::vector<llmtrain::AdamwUpdate> updates;
  for (size_t i = 0; i < n; ++i) {
    const int64_t count = weights[i].numel();
    const double step = *floats_of(steps[i], 1) += 1.f;
    const double root = std::sqrt(1 - std::pow(beta2, step));
    const llmtrain::AdamwFactors factors{
        static_cast<float>(gradient_factor),
        static_cast<float>(1 - beta1),
        static_cast<float>(1 - beta2),
        static_cast<float>(beta2),
        static_cast<float>(1 - lr * weight_decay),
        static_cast<float>(lr / (1 - std::pow(beta1, step))),
        static_cast<float>(1 / root),
        static_cast<float>(eps),
    };
    updates.push_back({{floats_of(weights[i], count), floats_of(gradients[i], count),
                        floats_of(means[i], count), floats_of(mean_squares[i], count),
                        copy_of(copies[i], count), count},
                       factors});
  }
  llmtrain::adamw(updates);
}

Tensor nesterov(const Tensor& gradient, const Tensor& momentum, double gradient_factor,
                double mu) {
  const int64_t count = gradient.numel();
  Tensor direction = at::empty_like(gradient, gradient.options().dtype(at::kBFloat16));
  llmtrain::nesterov(floats_of(gradient, count), floats_of(momentum, count),
                     halves_of(direction, count), count, static_cast<float>(gradient_factor),
                     static_cast<float>(mu));
  return direction;
}

void descend(const Tensor& weight, const Tensor& direction, const std::optional<Tensor>& copy,
             double keep, double rate) {
  const int64_t count = weight.numel();
  llmtrain::descend(floats_of(weight, count), halves_of(direction, count), copy_of(copy, count),
                    count, static_cast<float>(keep), static_cast<float>(rate));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(llmtrain_native, m) {
  m.def("sum_of_squares(Tensor[] tensors) -> float", &sum_of_squares);
  m.def(
      "adamw(Tensor[] weights, Tensor[] gradients, Tensor[] means, Tensor[] mean_squares, "
      "Tensor[] steps, Tensor?[] copies, float gradient_factor, float lr, float beta1, "
      "float beta2, float weight_decay, float eps) -> ()",
      &adamw);
  m.def(
      "nesterov(Tensor gradient, Tensor momentum, float gradient_factor, float mu) -> Tensor",
      &nesterov);
  m.def(
      "descend(Tensor weight, Tensor direction, Tensor? copy, float keep, float rate) -> ()",
      &descend);
}
