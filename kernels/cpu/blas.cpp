#include "kernels/cpu/blas.h"

#include <cstdlib>
#include <string_view>

// Exported by OpenBLAS builds that choose their kernels at run time; absent from others.
extern "C" {
__attribute__((weak)) void gotoblas_dynamic_init();
__attribute__((weak)) void gotoblas_dynamic_quit();
}

namespace transmamba::cpu {
namespace {

/// OpenBLAS falls back to SSE3 ("Prescott") on processors newer than itself: 0.3.21 does so on Emerald
/// Rapids, where it then multiplies at a sixth of the speed. Its choice can only be corrected through the
/// environment, so the variable exists while OpenBLAS chooses again, and a user who sets it has the last
/// word.
void correct_core_type() {
#if defined(__x86_64__)
  constexpr const char* kVariable = "OPENBLAS_CORETYPE";
  if (!gotoblas_dynamic_init || !gotoblas_dynamic_quit || std::getenv(kVariable)) return;
  if (std::string_view(openblas_get_corename()) != "Prescott") return;
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (!avx512 && !avx2) return;
  setenv(kVariable, avx512 ? "SkylakeX" : "Haswell", 1);
  gotoblas_dynamic_quit();
  gotoblas_dynamic_init();
  unsetenv(kVariable);
#endif
}

}  // namespace

void prepare_blas() {
  // Not OpenBLAS's own pool: all ranks of the process would share it.
  [[maybe_unused]] static const bool once = (correct_core_type(), openblas_set_num_threads(1), true);
}

}  // namespace transmamba::cpu
