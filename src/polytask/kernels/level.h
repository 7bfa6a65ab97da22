/* What every kernel's file begins with.

Plain C11 with the vector types of GCC and Clang, without Python or other libraries. Each file is
compiled once for each LEVEL of the machine's vectors, and all go into one library. */

#include <stdint.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { VECTOR = 64 }; /* bytes of the machine's vectors */
#elif defined(__AVX__)
enum { VECTOR = 32 };
#else
enum { VECTOR = 16 };
#endif

#ifndef LEVEL
#define LEVEL 0 /* 3 and 4 are those of x86-64: with AVX2, and with AVX-512 */
#endif
#define JOINED(name, level) polytask_##name##_##level
#define NAMED(name, level) JOINED(name, level)
#define VISIBLE __attribute__((visibility("default")))
#define EXPORT(type, name) VISIBLE type NAMED(name, LEVEL)
#define INLINE static inline __attribute__((always_inline))
