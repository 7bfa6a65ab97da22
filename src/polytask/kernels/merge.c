/* Merging in one pass over the elements: what `merge/kernels.py` calls instead of torch, bit for bit.

Each function takes rows of one piece as their files hold them, widens them, computes, and rounds
once. Every product, sum and quotient is rounded by itself and in the order of the torch code that
defines the method: to be compiled without contraction (-ffp-contract=off) and without -ffast-math.

Plain C11 with the vector types of GCC and Clang, without Python or other libraries. It is compiled
once for each LEVEL of the machine's vectors, and all go into one library; what they compute differs
in no bit. Nothing is kept between calls, so that any number of threads may call.

Names: rows = models; count = elements of the piece; a step = two vectors of elements. */

#include <stdlib.h>

#include "level.h"

enum { BF16, F16, F32 }; /* dtypes of rows and results */
/* A vector of float64 is as long as the machine's, one of 32 bits has as many elements. */
enum { LANES = VECTOR / 8 };
enum { STEP = 2 * LANES, BLOCK = 128, MODELS = 64 };

typedef float F __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef double D __attribute__((vector_size(VECTOR)));
typedef uint64_t L __attribute__((vector_size(VECTOR)));

/* STEP elements. Of 16-bit rows `a` holds those at even places and `b` those at odd ones, so that
one operation takes them out of 32-bit words; of float32 `a` holds the first half. */
typedef struct { F a, b; } Floats;
typedef struct { D a, b; } Doubles;

#if defined(__AVX512F__) /* GCC 12 makes five instructions of each */
INLINE F single(D x) { return (F)_mm512_cvtpd_ps((__m512d)x); }
INLINE D wide(F x) { return (D)_mm512_cvtps_pd((__m256)x); }
#elif defined(__AVX__)
INLINE F single(D x) { return (F)_mm256_cvtpd_ps((__m256d)x); }
INLINE D wide(F x) { return (D)_mm256_cvtps_pd((__m128)x); }
#else
INLINE F single(D x) { return __builtin_convertvector(x, F); }
INLINE D wide(F x) { return __builtin_convertvector(x, D); }
#endif
INLINE U where(U mask, U yes, U no) { return (mask & yes) | (~mask & no); }
INLINE U load(const void *from) { U x; memcpy(&x, from, sizeof x); return x; }
INLINE void put(void *to, U x) { memcpy(to, &x, sizeof x); }

INLINE int any_top_bit(U x) {
    uint32_t found = 0;
    for (int i = 0; i < LANES; i++) found |= x[i];
    return found >> 31;
}

/* ---- widening: exact ---- */

/* float16 in the lower halves of words, the upper ones 0. */
INLINE F of_half(U half) {
    U size = half & 0x7fff, sign = (half & 0x8000) << 16;
    U normal = (size << 13) + (112u << 23), special = (size << 13) + (224u << 23);
    U below = (U)(__builtin_convertvector((I)size, F) * 0x1p-24f);
    U out = where((U)(size < 0x400), below, where((U)(size >= 0x7c00), special, normal));
    return (F)(out | sign);
}

/* `dtype` is a constant wherever this is inlined. */
INLINE Floats widened(const void *row, int64_t at, int dtype) {
    if (dtype == F32) {
        const float *from = (const float *)row + at;
        return (Floats){(F)load(from), (F)load(from + LANES)};
    }
    U words = load((const uint16_t *)row + at);
    if (dtype == BF16) return (Floats){(F)(words << 16), (F)(words & 0xffff0000u)};
    return (Floats){of_half(words & 0xffff), of_half(words >> 16)};
}

INLINE Doubles widest(const void *row, int64_t at, int dtype) {
    Floats x = widened(row, at, dtype);
    return (Doubles){wide(x.a), wide(x.b)};
}

/* ---- rounding: to the nearest, ties to even ---- */

/* The 16-bit number nearest to a float32, in the lower halves of words. */
INLINE U narrowed(U bits, int dtype) {
    if (dtype == BF16) return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    U size = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
    U normal = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
    /* Added to 0.5, whose last bit is worth float16's smallest number. */
    U is_below = (U)(size < 0x38800000), half = (U){0} + 0x3f000000u;
    U below = (U)((F)(size & is_below) + (F)half) - 0x3f000000u;
    return where(is_below, below, normal) | sign;
}

/* From this size on a float32 rounds to what is not finite; so do infinities and NaN. */
INLINE uint32_t limit(int dtype) {
    return dtype == F32 ? 0x7f800000u : dtype == BF16 ? 0x7f7f8000u : 0x477ff000u;
}

/* A float64 as float32, rounded to odd where it is inexact: rounding that to 16 bits gives what
rounding the float64 would give, since it lies on a tie only where the float64 does. */
INLINE U to_odd(D x) {
    F near = single(x);
    D back = wide(near);
    D size = (D)((L)x & 0x7fffffffffffffffu), of_back = (D)((L)back & 0x7fffffffffffffffu);
    U too_far = (U)__builtin_convertvector(of_back > size, I);
    U inexact = (U)__builtin_convertvector(back != x, I);
    return ((U)near + too_far) | (inexact & 1); /* NaN keeps being one */
}

/* The float32 nearest to x among those that 16 bits can hold, where it is a normal number there.
What is no number may become one, unless x has come from few digits. */
INLINE U cut(D x, int dtype) {
    int lost = dtype == BF16 ? 45 : 42;
    L bits = (L)x;
    bits += ((bits >> lost) & 1) + (((uint64_t)1 << (lost - 1)) - 1);
    return (U)single((D)(bits & ~(((uint64_t)1 << lost) - 1)));
}

/* Puts STEP results. in: the rows' dtype, which says in what order they are. Sets the top bit of
`spoiled` where one is not finite. */
INLINE void put_step(U a, U b, void *out, int64_t at, int in, int dtype, U *spoiled) {
    uint32_t room = 0x80000000u - limit(dtype);
    *spoiled |= ((a & 0x7fffffff) + room) | ((b & 0x7fffffff) + room);
    if (dtype != F32) a = narrowed(a, dtype), b = narrowed(b, dtype);
    if (in != F32 && dtype != F32) {
        put((uint16_t *)out + at, a | (b << 16));
    } else if (in == F32 && dtype == F32) {
        put((float *)out + at, a), put((float *)out + at + LANES, b);
    } else {
        uint32_t place[STEP];
        put(place, a), put(place + LANES, b);
        for (int i = 0; i < STEP; i++) {
            uint32_t bits = place[in == F32 ? i : i / 2 + i % 2 * LANES];
            if (dtype == F32) ((uint32_t *)out)[at + i] = bits;
            else ((uint16_t *)out)[at + i] = (uint16_t)bits;
        }
    }
}

/* The same of float64. below: where given, the quick way is gone, and its top bit is set where that
was wrong. */
INLINE void put_doubles(Doubles x, void *out, int64_t at, int in, int dtype, U *spoiled,
                        U *below) {
    if (dtype == F32) {
        put_step((U)single(x.a), (U)single(x.b), out, at, in, dtype, spoiled);
    } else if (below && in == dtype) {
        U a = cut(x.a, dtype), b = cut(x.b, dtype), least = (U){0};
        least += dtype == BF16 ? 0x00800000 : 0x38800000;
        *below |= ((a & 0x7fffffff) - least) | ((b & 0x7fffffff) - least);
        if (dtype == BF16) { /* needs no more rounding */
            *spoiled |= ((a & 0x7fffffff) + 0x00800000) | ((b & 0x7fffffff) + 0x00800000);
            put((uint16_t *)out + at, (a >> 16) | b);
        } else {
            put_step(a, b, out, at, in, dtype, spoiled);
        }
    } else {
        put_step(to_odd(x.a), to_odd(x.b), out, at, in, dtype, spoiled);
    }
}

/* Calls DO with the constant DTYPE that the variable `dtype` has. */
#define BY_DTYPE(dtype, DO)                               \
    switch (dtype) {                                      \
    case BF16: { enum { DTYPE = BF16 }; DO; } break;      \
    case F16: { enum { DTYPE = F16 }; DO; } break;        \
    default: { enum { DTYPE = F32 }; DO; } break;         \
    }
#define BY_DTYPES(dtype, out_dtype, DO)                                         \
    switch (out_dtype) {                                                        \
    case BF16: { enum { OUT = BF16 }; BY_DTYPE(dtype, DO) } break;              \
    case F16: { enum { OUT = F16 }; BY_DTYPE(dtype, DO) } break;                \
    default: { enum { OUT = F32 }; BY_DTYPE(dtype, DO) } break;                 \
    }

INLINE int64_t width(int dtype) { return dtype == F32 ? 4 : 2; }

/* ---- the end of a piece that is no whole step: its rows, copied to where one has room ---- */

typedef struct {
    const void *rows[MODELS];
    uint32_t values[MODELS][STEP];
} Tail;

INLINE void take_tail(Tail *tail, const void *const *rows, int count_rows, int64_t at, int64_t n,
                      int dtype) {
    memset(tail->values, 0, sizeof *tail->values * (size_t)count_rows);
    for (int r = 0; r < count_rows; r++) {
        tail->rows[r] = tail->values[r];
        memcpy(tail->values[r], (const char *)rows[r] + at * width(dtype), (size_t)(n * width(dtype)));
    }
}

/* ---- whether all rows are finite ---- */

INLINE int is_finite(const void *row, int64_t count, int dtype) {
    if (dtype == F32) {
        uint32_t most = 0;
        for (int64_t i = 0; i < count; i++) {
            uint32_t size = ((const uint32_t *)row)[i] & 0x7fffffff;
            most = size > most ? size : most;
        }
        return most < 0x7f800000;
    }
    uint16_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        uint16_t size = ((const uint16_t *)row)[i] & 0x7fff;
        most = size > most ? size : most;
    }
    return most < (dtype == BF16 ? 0x7f80 : 0x7c00);
}

EXPORT(int, finite)(const void *const *rows, int count_rows, int dtype, int64_t count) {
    int finite = 1;
    for (int r = 0; finite && r < count_rows; r++) finite = is_finite(rows[r], count, dtype);
    return finite;
}

/* ---- mixtures: base.Mixture ---- */

/* factor: one per row. share: what the sum is divided by, or times, where `divides` is not set.
moves: whether the last row is added to `scale` times that. */
typedef struct {
    const double *factor;
    double over, share, scale;
    int rows, divides, moves;
} Mixture;

INLINE void mix_steps(const Mixture *given, const void *const *rows, int64_t start, int64_t stop,
                      void *out, U *spoiled, U *below, int plain, int dtype, int out_dtype) {
    const Mixture mix = *given; /* a copy that no result can be written into */
    const int last = mix.rows - 1;
    const double first = mix.factor[0], of_last = mix.factor[last];
    const void *const row0 = rows[0], *const row_last = rows[last];
    U bad = *spoiled, small = {0};
    for (int64_t at = start; at < stop; at += STEP) {
        Doubles sum = widest(row0, at, dtype), x = sum;
        if (!plain || last == 0) sum.a *= first, sum.b *= first;
        for (int r = 1; r < last; r++) {
            x = widest(rows[r], at, dtype);
            if (!plain) x.a *= mix.factor[r], x.b *= mix.factor[r];
            sum.a += x.a, sum.b += x.b;
        }
        if (last) {
            x = widest(row_last, at, dtype);
            sum.a += x.a * of_last, sum.b += x.b * of_last;
        }
        if (mix.divides) sum.a /= mix.over, sum.b /= mix.over;
        else if (mix.share != 1) sum.a *= mix.share, sum.b *= mix.share;
        if (mix.moves) sum.a = sum.a * mix.scale + x.a, sum.b = sum.b * mix.scale + x.b;
        put_doubles(sum, out, at, dtype, out_dtype, &bad, below ? &small : 0);
    }
    *spoiled = bad;
    if (below) *below = small;
}

/* The quick way first. */
INLINE void mix_block(const Mixture *mix, const void *const *rows, int64_t start, int64_t stop,
                      void *out, U *spoiled, int plain, int dtype, int out_dtype) {
    U below = {0}, bad = {0};
    mix_steps(mix, rows, start, stop, out, &bad, &below, plain, dtype, out_dtype);
    if (any_top_bit(below)) {
        bad = (U){0};
        mix_steps(mix, rows, start, stop, out, &bad, 0, plain, dtype, out_dtype);
    }
    *spoiled |= bad;
}

INLINE void mix_all(const Mixture *mix, const void *const *rows, int64_t start, int64_t stop,
                    void *out, U *spoiled, int plain, int dtype, int out_dtype) {
    for (int64_t at = start; at < stop; at += BLOCK)
        mix_block(mix, rows, at, stop - at < BLOCK ? stop : at + BLOCK, out, spoiled, plain, dtype,
                  out_dtype);
}

/* ---- the same of bfloat16 in float32, where that must round as float64 does ---- */

/* factor: what each row is multiplied by in all. error: times the size of the largest element, more
than what the sum is off by, and what the sum in float64 is off by. */
typedef struct { float factor[MODELS], error; } Nearly;

/* Puts it; returns whether it is so for the mixture. */
INLINE int nearly(const Mixture *mix, Nearly *out) {
    double scale = mix->moves ? mix->scale : 1, sizes = 0, on_the_way = mix->moves;
    for (int r = 0; r < mix->rows; r++) {
        double part = mix->factor[r] / mix->over * scale;
        double whole = part + (mix->moves && r == mix->rows - 1);
        double size = whole < 0 ? -whole : whole;
        if (!(size == 0 || (size > 0x1p-40 && size < 0x1p40))) return 0;
        out->factor[r] = (float)whole;
        sizes += size;
        on_the_way += part < 0 ? -part : part;
    }
    /* A row is off by its factor's rounding and a product's, the sum by one of each row, and the
    ends that are looked at by one more, each 2^-24 of the sizes at most; float64 by far less. */
    out->error = (float)(sizes * (mix->rows + 5) * 0x1p-24);
    return on_the_way < sizes * 0x1p20;
}

/* Vectors as long as the machine's, of 32 bits. */
typedef float WideF __attribute__((vector_size(VECTOR)));
typedef uint32_t WideU __attribute__((vector_size(VECTOR)));
typedef int16_t Shorts __attribute__((vector_size(VECTOR)));

#if defined(__AVX512BW__)
#define BY_SHORTS(name, x, y) (WideU)_mm512_##name((__m512i)(x), (__m512i)(y))
#elif defined(__AVX2__)
#define BY_SHORTS(name, x, y) (WideU)_mm256_##name((__m256i)(x), (__m256i)(y))
#endif

INLINE WideU larger(WideU x, WideU y) { /* of 16 bits each, none above 0x7fff */
#ifdef BY_SHORTS
    return BY_SHORTS(max_epi16, x, y);
#else
    WideU is = (WideU)((Shorts)x > (Shorts)y);
    return (x & is) | (y & ~is);
#endif
}

/* Elements that are asked for ahead: there is much to do on those at hand. */
enum { AHEAD = 256 };

INLINE WideF times_and(WideF x, float factor, WideF sum) {
#if defined(__AVX512F__)
    return (WideF)_mm512_fmadd_ps((__m512)x, _mm512_set1_ps(factor), (__m512)sum);
#elif defined(__FMA__)
    return (WideF)_mm256_fmadd_ps((__m256)x, _mm256_set1_ps(factor), (__m256)sum);
#else
    return x * factor + sum;
#endif
}

INLINE int any_bit(WideU x) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)x, (__m512i)x) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)x, (__m256i)x);
#else
    uint32_t found = 0;
    for (int i = 0; i < 2 * LANES; i++) found |= x[i];
    return found != 0;
#endif
}

/* Returns whether both ends of where each sum may lie are rounded to one number, no small one. */
INLINE int nearly_steps(const Nearly *of, const void *const *rows, int count_rows, int64_t start,
                        int64_t stop, void *out, WideU *spoiled) {
    WideU apart = {0}, small = {0}, bad = *spoiled, least = (WideU){0} + 0x0d800000; /* 2^-100 */
    for (int64_t at = start; at < stop; at += 2 * STEP) {
        WideU most = {0};
        WideF a = {0}, b = {0};
        for (int r = 0; r < count_rows; r++) {
            WideU words;
            __builtin_prefetch((const uint16_t *)rows[r] + at + AHEAD, 0, 3);
            memcpy(&words, (const uint16_t *)rows[r] + at, sizeof words);
            most = larger(most, words & 0x7fff7fff);
            a = times_and((WideF)(words << 16), of->factor[r], a);
            b = times_and((WideF)(words & 0xffff0000u), of->factor[r], b);
        }
        WideF of_a = (WideF)(most << 16) * of->error, of_b = (WideF)(most & 0xffff0000u) * of->error;
        WideU low_a = (WideU)(a - of_a) + 0x8000, high_a = (WideU)(a + of_a) + 0x8000;
        WideU low_b = (WideU)(b - of_b) + 0x8000, high_b = (WideU)(b + of_b) + 0x8000;
        apart |= (low_a ^ high_a) | (low_b ^ high_b);
        small |= ((low_a & 0x7fffffff) - least) | ((low_b & 0x7fffffff) - least);
        bad |= ((low_a & 0x7fffffff) + 0x00800000) | ((low_b & 0x7fffffff) + 0x00800000);
        low_b = (low_a >> 16) | (low_b & 0xffff0000u);
        memcpy((uint16_t *)out + at, &low_b, sizeof low_b);
    }
    *spoiled = bad;
    return !any_bit((apart & 0xffff0000u) | (small & 0x80000000u));
}

/* ---- the same where the factors are short fractions, such as 0.3, which lead to ties ---- */

/* Sums of whole numbers of bfloat16 that are not far apart are exact in float32, and so is what
lies on a tie; what does not is off it by a `bottom`-th of a last digit or more, when the factor is
a fraction with that bottom: further than float32 errs. What is to be known of each element is how
far apart its rows and the result are, by their bits, 128 to an octave; zeros are far from all.

factor: whole numbers. high + low: what their sum is multiplied by, of one sign. rows, result: how
far below the largest element the least may be, and the result. */
typedef struct { float factor[MODELS], high, low; uint16_t rows, result; int moves; } Digits;

#if defined(BY_SHORTS) && defined(__FMA__)

INLINE WideU in_both_halves(uint16_t x) { return (WideU){0} + (x | (uint32_t)x << 16); }

/* Puts it; returns whether it is so for the mixture. */
INLINE int digits(const Mixture *mix, Digits *out) {
    double sizes = 0, by = mix->moves ? mix->scale * mix->share : mix->share;
    if (mix->divides) {
        if (mix->moves) return 0; /* rounded twice on the way */
        if (!(mix->over >= 1 && mix->over <= 128) || (double)(int)mix->over != mix->over) return 0;
        by = 1 / mix->over;
    }
    for (int r = 0; r < mix->rows; r++) {
        double factor = mix->factor[r], size = factor < 0 ? -factor : factor;
        if (!(size <= 256) || (double)(int)factor != factor) return 0;
        out->factor[r] = (float)factor;
        sizes += size;
    }
    double size = by < 0 ? -by : by;
    if (!(size >= 0x1p-10 && size <= 0x1p10)) return 0;
    int bottom = 1;
    for (; bottom <= 128; bottom++) {
        /* So near to the fraction that float64, too, gives a tie where the fraction does, as it
        does where it divides. */
        double top = (double)(int64_t)(size * bottom + 0.5);
        double off = __builtin_fma(size, bottom, -top);
        if ((off < 0 ? -off : off) <= top * (mix->divides ? 0x1p-50 : 0x1p-54)) break;
    }
    if (bottom > 128) return 0;
    /* Rows are whole multiples of 2^-8 of the least of them, ties of 2^-9 of the result; float32
    is off by `errs` * 2^-24 of the largest. Bits are logarithms up to 0.09, a factor of 1.07. */
    double errs = bottom * (2 * size * sizes + 1) * 1.07;
    int far = 128 * 16;
    for (; errs > 2; errs /= 2) far -= 128;
    far -= (int)(128 * (errs - 1)) + 12; /* at least its logarithm */
    if (errs < 1 || far < 128 * 4) return 0;
    out->rows = (uint16_t)far, out->result = (uint16_t)(far - 128);
    out->moves = mix->moves;
    uint32_t bits;
    out->high = (float)by;
    memcpy(&bits, &out->high, sizeof bits);
    if ((double)out->high * (by < 0 ? -1 : 1) > size) bits--; /* towards 0 */
    memcpy(&out->high, &bits, sizeof bits);
    double rest = by - (double)out->high;
    out->low = rest != 0 ? (float)rest : by < 0 ? -0.0f : 0.0f;
    return 1;
}

/* Returns whether no element's rows and result are too far apart, nor too small. */
INLINE int digit_steps(const Digits *of, const void *const *rows, int count_rows, int64_t start,
                       int64_t stop, void *out, WideU *spoiled) {
    const WideU size = in_both_halves(0x7fff);
    const WideU apart = in_both_halves(of->rows), below = in_both_halves(of->result);
    const WideU small = in_both_halves((127 - 60) << 7); /* 2^-60 */
    const WideF low = of->low - (WideF){0}; /* -0 stays */
    WideU far = {0}, bad = *spoiled;
    for (int64_t at = start; at < stop; at += 2 * STEP) {
        WideU words, most = {0}, least = {0}, result;
        WideF a = {0}, b = {0}, x_a = {0}, x_b = {0};
        for (int r = 0; r < count_rows; r++) {
            __builtin_prefetch((const uint16_t *)rows[r] + at + AHEAD, 0, 3);
            memcpy(&words, (const uint16_t *)rows[r] + at, sizeof words);
            x_a = (WideF)(words << 16), x_b = (WideF)(words & 0xffff0000u);
            words &= size;
            if (r == 0) {
                a = x_a * of->factor[0], b = x_b * of->factor[0];
                most = least = words;
            } else {
                a = times_and(x_a, of->factor[r], a), b = times_and(x_b, of->factor[r], b);
                most = larger(most, words);
                least = BY_SHORTS(min_epu16, least, words);
            }
        }
        a = times_and(a, of->high, a * low), b = times_and(b, of->high, b * low);
        if (of->moves) a += x_a, b += x_b;
        WideU of_a = (WideU)a, of_b = (WideU)b;
        of_a += 0x7fff + ((of_a >> 16) & 1), of_b += 0x7fff + ((of_b >> 16) & 1);
        result = (of_a >> 16) | (of_b & 0xffff0000u);
        memcpy((uint16_t *)out + at, &result, sizeof result);
        result &= size;
        bad |= result + in_both_halves(0x0080);
        far |= BY_SHORTS(subs_epu16, most, BY_SHORTS(adds_epu16, least, apart));
        far |= BY_SHORTS(subs_epu16, most, BY_SHORTS(adds_epu16, result, below));
        far |= BY_SHORTS(subs_epu16, small, most);
    }
    *spoiled = bad;
    return !any_bit(far);
}

#else /* not worth it, or not exact */
INLINE int digits(const Mixture *mix, Digits *out) { return (void)mix, (void)out, 0; }
INLINE int digit_steps(const Digits *of, const void *const *rows, int count_rows, int64_t start,
                       int64_t stop, void *out, WideU *spoiled) {
    return (void)of, (void)rows, (void)count_rows, (void)start, (void)stop, (void)out,
           (void)spoiled, 0;
}
#endif

/* In blocks; those it does not settle are for float64. Where few are settled, so is the rest.
Returns how far it came. of, by_digits: one of them, the other is null. */
INLINE int64_t mix_nearly(const Mixture *mix, const Nearly *of, const Digits *by_digits,
                          const void *const *rows, int64_t count, void *out, U *spoiled) {
    WideU bad = {0};
    const int block = by_digits ? 2 * STEP : BLOCK;
    int64_t at = 0, left = 32; /* blocks that may fail beyond those that are settled */
    for (; at < count && left; at += block) {
        int64_t stop = count - at < block ? count : at + block;
        if (by_digits ? digit_steps(by_digits, rows, mix->rows, at, stop, out, &bad)
                      : nearly_steps(of, rows, mix->rows, at, stop, out, &bad)) {
            left++;
        } else {
            left--;
            mix_block(mix, rows, at, stop, out, spoiled, 0, BF16, BF16);
        }
    }
    /* Where only float32 left its range, torch finds what float64 gives. */
    if (any_bit(bad & (by_digits ? 0x80008000u : 0x80000000u))) *spoiled |= 0x80000000u;
    return at < count ? at : count;
}

/* (sum of factor * row) / over; with `moves`, the last row + scale * that. Returns whether all of
the result is finite. */
EXPORT(int, mix)(const void *const *rows, int count_rows, int dtype, const double *factor,
                        double over, int moves, double scale, int64_t count, void *out,
                        int out_dtype) {
    uint64_t bits;
    memcpy(&bits, &over, sizeof bits);
    uint64_t exponent = (bits >> 52) & 0x7ff;
    /* Times a power of two is what a division by it gives, and much quicker. */
    int power = (bits << 12) == 0 && exponent > 100 && exponent < 1900;
    Mixture mix = {factor, over, power ? 1 / over : 1, scale, count_rows, !power, moves};
    int plain = 1;
    for (int r = 0; r < count_rows - 1; r++) plain &= factor[r] == 1;
    U spoiled = {0};
    int64_t whole = count / STEP * STEP, left = count - whole, done = 0;
    Nearly of;
    Digits by;
    if (dtype == BF16 && out_dtype == BF16) {
        int64_t most = count / (2 * STEP) * (2 * STEP);
        if (digits(&mix, &by))
            done = mix_nearly(&mix, 0, &by, rows, most, out, &spoiled);
        else if (nearly(&mix, &of))
            done = mix_nearly(&mix, &of, 0, rows, most, out, &spoiled);
    }
    if (plain) {
        BY_DTYPES(dtype, out_dtype,
                  mix_all(&mix, rows, done, whole, out, &spoiled, 1, DTYPE, OUT))
    } else {
        BY_DTYPES(dtype, out_dtype,
                  mix_all(&mix, rows, done, whole, out, &spoiled, 0, DTYPE, OUT))
    }
    if (left) {
        Tail tail;
        uint32_t last[STEP];
        take_tail(&tail, rows, count_rows, whole, left, dtype);
        BY_DTYPES(dtype, out_dtype,
                  mix_all(&mix, tail.rows, 0, STEP, last, &spoiled, 0, DTYPE, OUT))
        memcpy((char *)out + whole * width(out_dtype), last, (size_t)(left * width(out_dtype)));
    }
    return !any_top_bit(spoiled);
}

INLINE void pool_steps(const void *const *rows, int count_rows, float share, int64_t count,
                       void *out, U *spoiled) {
    for (int64_t at = 0; at < count; at += STEP) {
        Floats sum = {(F){0}, (F){0}};
        for (int r = 0; r < count_rows; r++) {
            Floats x = widened(rows[r], at, BF16);
            sum.a += x.a, sum.b += x.b;
        }
        put_step((U)(sum.a * share), (U)(sum.b * share), out, at, BF16, BF16, spoiled);
    }
}

/* The mean of 2, 4 or 8 rows of bfloat16, summed in float32 from 0 on: pieces._pooled. */
EXPORT(int, pool)(const void *const *rows, int count_rows, int64_t count, void *out) {
    float share = 1.0f / (float)count_rows; /* exact */
    U spoiled = {0};
    int64_t whole = count / STEP * STEP, left = count - whole;
    pool_steps(rows, count_rows, share, whole, out, &spoiled);
    if (left) {
        Tail tail;
        uint32_t last[STEP];
        take_tail(&tail, rows, count_rows, whole, left, BF16);
        pool_steps(tail.rows, count_rows, share, STEP, last, &spoiled);
        memcpy((char *)out + whole * 2, last, (size_t)left * 2);
    }
    return !any_top_bit(spoiled);
}

/* ---- inner products: angles.Angles ---- */

/* Of a stretch of RUN elements, the products of elements k, k + ACROSS, k + 2 ACROSS, ... are added
one after another, from 0 on, and the sums of the stretches one after another. */
enum { ACROSS = 16, RUN = 512, FEW = 4, PRODUCTS = 16, PLACES = 8, VECTORS = ACROSS / LANES };

INLINE D get(const double *from) { D x; memcpy(&x, from, sizeof x); return x; }
INLINE void set(double *to, D x) { memcpy(to, &x, sizeof x); }

/* Products of what were float32 are exact, so that it is all one whether they are rounded. */
INLINE D product_and(D x, D y, D sum) {
#if defined(__AVX512F__)
    return (D)_mm512_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)sum);
#elif defined(__FMA__)
    return (D)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)sum);
#else
    return x * y + sum;
#endif
}

/* STEP elements of each model, less those of the last row, the base, where there is one. */
INLINE void take_step(const void *const *rows, int models, int with_base, int64_t at, int dtype,
                      D *a, D *b) {
    Floats base = {(F){0}, (F){0}};
    if (with_base) base = widened(rows[models], at, dtype);
    for (int m = 0; m < models; m++) {
        Floats x = widened(rows[m], at, dtype);
        if (with_base) x.a -= base.a, x.b -= base.b;
        a[m] = wide(x.a), b[m] = wide(x.b);
    }
}

INLINE void ask_for(const void *const *rows, int count_rows, int64_t at, int dtype) {
    for (int m = 0; m < count_rows; m++)
        __builtin_prefetch((const char *)rows[m] + (at + AHEAD) * width(dtype), 0, 3);
}

/* A stretch of a few models: all in registers, where those are as long as ACROSS halves. */
INLINE void few_products(const void *const *rows, int models, int with_base, int64_t start,
                         double *sums, int dtype) {
    D found[FEW * (FEW + 1) / 2][VECTORS];
    for (int pair = 0; pair < models * (models + 1) / 2; pair++)
        for (int v = 0; v < VECTORS; v++) found[pair][v] = (D){0};
    for (int64_t at = start; at < start + RUN; at += ACROSS) {
        ask_for(rows, models + with_base, at, dtype);
        for (int v = 0; v < VECTORS; v += 2) {
            D a[FEW], b[FEW];
            take_step(rows, models, with_base, at + v * LANES, dtype, a, b);
            for (int i = 0, pair = 0; i < models; i++) {
                for (int j = i; j < models; j++, pair++) {
                    found[pair][v] = product_and(a[i], a[j], found[pair][v]);
                    found[pair][v + 1] = product_and(b[i], b[j], found[pair][v + 1]);
                }
            }
        }
    }
    for (int pair = 0; pair < models * (models + 1) / 2; pair++) {
        for (int v = 0; v < VECTORS; v++) {
            double *to = sums + pair * ACROSS + v * LANES;
            set(to, get(to) + found[pair][v]);
        }
    }
}

/* A stretch of any number: the vectors of PLACES in memory, and four sums at a time. */
INLINE void many_products(const void *const *rows, int models, int with_base, int64_t start,
                          double *sums, int dtype) {
    double run[PRODUCTS * (PRODUCTS + 1) / 2 * ACROSS] = {0};
    const int all = models * (models + 1) / 2 * ACROSS;
    for (int64_t at = start; at < start + RUN; at += PLACES * ACROSS) {
        for (int v = 0; v < VECTORS; v += 2) {
            D x[2][PLACES][PRODUCTS];
            for (int r = 0; r < PLACES; r++) {
                int64_t place = at + r * ACROSS + v * LANES;
                ask_for(rows, models + with_base, place, dtype);
                take_step(rows, models, with_base, place, dtype, x[0][r], x[1][r]);
            }
            for (int half = 0; half < 2; half++) {
                double *to = run + (v + half) * LANES;
                for (int i = 0; i < models; i++) {
                    for (int j = i; j < models; j += 4) {
                        D found[4];
                        int many = models - j < 4 ? models - j : 4;
                        for (int n = 0; n < many; n++) found[n] = get(to + n * ACROSS);
                        for (int r = 0; r < PLACES; r++)
                            for (int n = 0; n < many; n++)
                                found[n] = product_and(x[half][r][i], x[half][r][j + n], found[n]);
                        for (int n = 0; n < many; n++) set(to + n * ACROSS, found[n]);
                        to += many * ACROSS;
                    }
                }
            }
        }
    }
    for (int i = 0; i < all; i++) sums[i] += run[i];
}

/* `whole` is a multiple of RUN. */
INLINE void all_products(const void *const *rows, int models, int with_base, int64_t whole,
                         double *sums, int dtype) {
    for (int64_t at = 0; at < whole; at += RUN) {
        if (models == 2) few_products(rows, 2, with_base, at, sums, dtype);
        else if (models == 3) few_products(rows, 3, with_base, at, sums, dtype);
        else if (models == 4) few_products(rows, 4, with_base, at, sums, dtype);
        else many_products(rows, models, with_base, at, sums, dtype);
    }
}

/* Puts numbers in the order in which `widened` takes 16-bit rows, or back. */
INLINE void reordered(double *sums, int64_t count, int back) {
    for (int64_t at = 0; at < count; at += STEP) {
        double step[STEP];
        memcpy(step, sums + at, sizeof step);
        for (int i = 0; i < STEP; i++) {
            int other = i / 2 + i % 2 * LANES;
            if (back) sums[at + i] = step[other];
            else sums[at + other] = step[i];
        }
    }
}

/* Adds the products of each of the models with itself and those after it, ACROSS sums for a pair;
each less the last row, the base, in float32, where there is one. */
EXPORT(void, products)(const void *const *rows, int models, int with_base, int dtype, int64_t count,
                       double *sums) {
    int64_t all = models * (models + 1) / 2 * ACROSS, whole = count / RUN * RUN;
    const void *ends[PRODUCTS + 1];
    uint32_t end[PRODUCTS + 1][RUN];
    memset(end, 0, sizeof end); /* which adds nothing */
    for (int m = 0; m < models + with_base; m++)
        ends[m] = memcpy(end[m], (const char *)rows[m] + whole * width(dtype),
                         (size_t)((count - whole) * width(dtype)));
    if (dtype != F32) reordered(sums, all, 0);
    for (int last = 0; last < 2; last++) {
        const void *const *from = last ? ends : rows;
        int64_t length = last ? whole < count ? RUN : 0 : whole;
        if (with_base) BY_DTYPE(dtype, all_products(from, models, 1, length, sums, DTYPE))
        else BY_DTYPE(dtype, all_products(from, models, 0, length, sums, DTYPE))
    }
    if (dtype != F32) reordered(sums, all, 1);
}

/* ---- changes: base.Changes ---- */

/* rows: the models, then the base, whose difference is each change, in float32.
draws: integers of `draw_width` bytes, one row per model; a change whose draw is above `draw_most`
    is multiplied by 0. None where draw_width is 0.
over: what changes are divided by then. below, most: those of a size up to below, or above most,
    become 0; null where there is no such end. weights: what they are multiplied by then, or null. */
typedef struct {
    const void *const *rows;
    const void *const *draws;
    const float *below, *most, *weights;
    int32_t models, dtype, draw_width;
    uint32_t draw_most;
    float over;
} Changes;

/* Elements of a block, whose changes stay in the first cache. Loops over one are of a length that
is known, and what is beyond the end of a piece is 0. */
enum { N = 256 };

typedef uint16_t H __attribute__((vector_size(2 * LANES)));

INLINE F natural(const void *row, int64_t i, int dtype) {
    if (dtype == F32) return (F)load((const float *)row + i);
    H half;
    memcpy(&half, (const uint16_t *)row + i, sizeof half);
    U bits = __builtin_convertvector(half, U);
    return dtype == BF16 ? (F)(bits << 16) : of_half(bits);
}

/* Elements in their order, less those of `base` where it is given. */
INLINE void taken(const void *row, const float *base, float *out, int dtype) {
    for (int i = 0; i < N; i += LANES) {
        F x = natural(row, i, dtype);
        if (base) x -= (F)load(base + i);
        put(out + i, (U)x);
    }
}

static void take(const void *row, int64_t at, int64_t n, const float *base, float *out, int dtype) {
    uint32_t end[N];
    const void *from = (const char *)row + at * width(dtype);
    if (n < N) {
        memset(end, 0, sizeof end);
        from = memcpy(end, from, (size_t)(n * width(dtype)));
    }
    if (base) BY_DTYPE(dtype, taken(from, base, out, DTYPE))
    else BY_DTYPE(dtype, taken(from, 0, out, DTYPE))
}

/* Multiplies by 1 where a change is kept, by 0 elsewhere. */
static void drop(float *restrict tau, const void *draws, int64_t at, int64_t n, int bytes,
                 uint32_t most) {
    uint32_t end[N];
    const void *from = (const char *)draws + at * bytes;
    if (n < N) from = memcpy(end, from, (size_t)(n * bytes));
    if (bytes == 1) {
        uint8_t draw[N];
        memcpy(draw, from, sizeof draw);
        for (int i = 0; i < N; i++) tau[i] *= draw[i] <= most ? 1.0f : 0.0f;
    } else if (bytes == 2) {
        uint16_t draw[N];
        memcpy(draw, from, sizeof draw);
        for (int i = 0; i < N; i++) tau[i] *= draw[i] <= most ? 1.0f : 0.0f;
    } else {
        uint32_t draw[N];
        memcpy(draw, from, sizeof draw);
        for (int i = 0; i < N; i++) tau[i] *= draw[i] <= most ? 1.0f : 0.0f;
    }
}

/* The changes of a block, and its base. */
static void take_changes(const Changes *of, int64_t at, int64_t n, float *restrict base,
                         float (*restrict all)[N]) {
    take(of->rows[of->models], at, n, 0, base, of->dtype);
    for (int m = 0; m < of->models; m++) {
        float *restrict tau = all[m];
        take(of->rows[m], at, n, base, tau, of->dtype);
        if (of->draw_width) drop(tau, of->draws[m], at, n, of->draw_width, of->draw_most);
        if (of->over != 1)
            for (int i = 0; i < N; i++) tau[i] /= of->over;
        if (of->below) {
            float below = of->below[m];
            for (int i = 0; i < N; i++) tau[i] = tau[i] >= -below && tau[i] <= below ? 0 : tau[i];
        }
        if (of->most) {
            float most = of->most[m];
            for (int i = 0; i < N; i++)
                tau[i] -= tau[i] >= -most && tau[i] <= most ? 0 : tau[i];
        }
        if (of->weights) {
            float weight = of->weights[m];
            for (int i = 0; i < N; i++) tau[i] *= weight;
        }
    }
}

/* Sums over the models, in float64, rounded to float32; each times its factor, where there are
such. */
INLINE void sum_few(float (*restrict all)[N], int many, int first, double *restrict sum) {
    const float *restrict a = all[0], *restrict b = all[many > 1 ? 1 : 0];
    const float *restrict c = all[many > 2 ? 2 : 0], *restrict d = all[many > 3 ? 3 : 0];
    for (int i = 0; i < N; i++) {
        double x = first ? a[i] : sum[i] + a[i];
        if (many > 1) x += b[i];
        if (many > 2) x += c[i];
        if (many > 3) x += d[i];
        sum[i] = x;
    }
}

static void sum_models(float (*restrict all)[N], int models, const double *factor,
                       float *restrict out) {
    double sum[N];
    if (factor) {
        for (int m = 0; m < models; m++) {
            const float *restrict x = all[m];
            double f = factor[m];
            if (m == 0)
                for (int i = 0; i < N; i++) sum[i] = x[i] * f;
            else
                for (int i = 0; i < N; i++) sum[i] += x[i] * f;
        }
    } else {
        for (int m = 0; m < models; m += 4) {
            switch (models - m) {
            case 1: sum_few(all + m, 1, m == 0, sum); break;
            case 2: sum_few(all + m, 2, m == 0, sum); break;
            case 3: sum_few(all + m, 3, m == 0, sum); break;
            default: sum_few(all + m, 4, m == 0, sum); break;
            }
        }
    }
    for (int i = 0; i < N; i++) out[i] = (float)sum[i];
}

/* Puts a block in the result's dtype; returns whether it is finite. */
static int put_block(const float *restrict from, void *out, int64_t at, int64_t n, int dtype) {
    uint32_t bits[N], most = 0;
    memcpy(bits, from, sizeof bits);
    for (int i = 0; i < N; i++) {
        uint32_t size = bits[i] & 0x7fffffff;
        most = size > most ? size : most;
    }
    char *to = (char *)out + at * width(dtype);
    if (dtype == F32) {
        memcpy(to, bits, (size_t)n * 4);
    } else {
        uint16_t half[N];
        if (dtype == BF16)
            for (int i = 0; i < N; i++)
                half[i] = (uint16_t)((bits[i] + 0x7fff + ((bits[i] >> 16) & 1)) >> 16);
        else
            for (int i = 0; i < N; i++) {
                uint32_t size = bits[i] & 0x7fffffff, small = size < 0x38800000 ? size : 0;
                float shifted, near;
                uint32_t normal = (size - (112u << 23) + 0xfff + ((size >> 13) & 1)) >> 13, below;
                memcpy(&near, &small, sizeof near);
                shifted = near + 0.5f;
                memcpy(&below, &shifted, sizeof below);
                half[i] = (uint16_t)((size < 0x38800000 ? below - 0x3f000000u : normal) |
                                     ((bits[i] >> 16) & 0x8000));
            }
        memcpy(to, half, (size_t)n * 2);
    }
    return most < limit(dtype);
}

/* base + scale * (the sum of the changes, each times its factor where there are such, over `over`).
Returns whether all of the result is finite. */
EXPORT(int, add)(const Changes *of, const double *factor, float over, float scale, int64_t count,
                 void *out, int out_dtype) {
    float all[MODELS][N], base[N], sum[N];
    int finite = 1;
    for (int64_t at = 0; at < count; at += N) {
        int64_t n = count - at < N ? count - at : N;
        take_changes(of, at, n, base, all);
        sum_models(all, of->models, factor, sum);
        if (over != 1)
            for (int i = 0; i < N; i++) sum[i] /= over;
        for (int i = 0; i < N; i++) sum[i] = base[i] + sum[i] * scale;
        finite &= put_block(sum, out, at, n, out_dtype);
    }
    return finite;
}

static void signs_of(const float *restrict sum, float *restrict sign) {
    for (int i = 0; i < N; i++) sign[i] = (sum[i] > 0 ? 1.0f : 0.0f) - (sum[i] < 0 ? 1.0f : 0.0f);
}

/* base + scale * the mean of the changes that go in the elected direction, as steps.agreeing_mean
has it. majority: the sign where the sum is 0. sizes: of the weights, or null; least: the least of
them, or 1. Returns whether all of the result is finite. */
EXPORT(int, elect)(const Changes *of, float majority, const double *sizes, float least, float scale,
                   int64_t count, void *out, int out_dtype) {
    float all[MODELS][N], ones[MODELS][N], base[N], sum[N], sign[N], share[N];
    int finite = 1;
    for (int64_t at = 0; at < count; at += N) {
        int64_t n = count - at < N ? count - at : N;
        take_changes(of, at, n, base, all);
        sum_models(all, of->models, 0, sum);
        signs_of(sum, sign);
        if (majority != 0)
            for (int i = 0; i < N; i++) sign[i] = sign[i] != 0 ? sign[i] : majority;
        memset(share, 0, sizeof share);
        for (int m = 0; m < of->models; m++) {
            float *restrict x = all[m], *restrict one = ones[m];
            for (int i = 0; i < N; i++) {
                float ahead = x[i] * sign[i];
                x[i] = ahead < 0 ? 0 : ahead; /* NaN stays */
                one[i] = ahead > 0 ? 1.0f : 0.0f;
                share[i] += one[i];
            }
        }
        sum_models(all, of->models, 0, sum);
        if (sizes) sum_models(ones, of->models, sizes, share);
        for (int i = 0; i < N; i++) {
            float by = share[i] < least ? least : share[i];
            sum[i] = base[i] + sum[i] / by * sign[i] * scale;
        }
        finite &= put_block(sum, out, at, n, out_dtype);
    }
    return finite;
}

/* How many sums over the models are above 0, less how many are below. */
EXPORT(int64_t, signs)(const Changes *of, int64_t count) {
    float all[MODELS][N], base[N], sum[N], sign[N];
    int64_t found = 0;
    for (int64_t at = 0; at < count; at += N) {
        take_changes(of, at, count - at < N ? count - at : N, base, all);
        sum_models(all, of->models, 0, sum);
        signs_of(sum, sign);
        int32_t here = 0;
        for (int i = 0; i < N; i++) here += (int32_t)sign[i];
        found += here;
    }
    return found;
}

/* Puts those of a block's keys that are at most `room` one beside the other; returns how many. */
INLINE int gathered(const uint32_t *key, uint32_t room, uint32_t *out) {
    int found = 0;
#ifdef __AVX512F__
    for (int i = 0; i < N; i += 16) {
        __m512i keys = _mm512_loadu_si512(key + i);
        __mmask16 inside = _mm512_cmple_epu32_mask(keys, _mm512_set1_epi32((int)room));
        _mm512_storeu_si512(out + found, _mm512_maskz_compress_epi32(inside, keys));
        found += __builtin_popcount(inside);
    }
#else
    for (int i = 0; i < N; i++) {
        out[found] = key[i];
        found += key[i] <= room;
    }
#endif
    return found;
}

/* Counts sizes, taken by their bits as integers, as ranks.Ranks does: of each model, for each of
its `ranks` lines, how many are above `high`; those from `low` on up to it go into counters, cut by
`shift` bits, or, where `kept` is given, are themselves put among `inside`, as far as there is room
for `bins`. A line whose low is its high is left out. */
EXPORT(void, count)(const Changes *of, int64_t count, int ranks, const uint32_t *low,
                    const uint32_t *high, const int32_t *shift, int64_t *above, int64_t *inside,
                    int64_t *kept, int64_t bins) {
    float all[MODELS][N], base[N];
    for (int64_t at = 0; at < count; at += N) {
        int n = count - at < N ? (int)(count - at) : N;
        take_changes(of, at, n, base, all);
        for (int line = 0; line < of->models * ranks; line++) {
            uint32_t key[N], within[N + 16], from = low[line], room = high[line] - from, over = 0;
            if (room == 0) continue;
            memcpy(key, all[line / ranks], sizeof key);
            for (int i = 0; i < N; i++) {
                key[i] = (key[i] & 0x7fffffff) - from; /* wraps around where it is below */
                over += (int32_t)key[i] > (int32_t)room;
            }
            for (int i = n; i < N; i++) key[i] = UINT32_MAX; /* beyond the end: nowhere */
            above[line] += over;
            int64_t *mine = inside + line * bins;
            int found = gathered(key, room, within);
            if (!kept) {
                for (int i = 0; i < found; i++) mine[within[i] >> shift[line]]++;
            } else {
                for (int i = 0; i < found && kept[line] + i < bins; i++)
                    mine[kept[line] + i] = within[i] + from;
                kept[line] += found;
            }
        }
    }
}
