/* What the library was made of, and the highest level that this machine runs. */

#include "level.h"

#if LEVEL == 0
#ifndef SOURCE
#define SOURCE ""
#endif
VISIBLE const char polytask_source[] = SOURCE;
VISIBLE int polytask_level(void) {
#ifdef LEVELS
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? 4
               : 3;
#else
    return 0;
#endif
}
#endif
