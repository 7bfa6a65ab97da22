/* One row through the layer of many networks, side by side.

A product of one row reads every weight once and computes next to nothing: it is as quick as memory
gives the weights. Products are added up input by input, each rounded by itself, so that levels
differ in no bit, and a network's output does not depend on its siblings. */

#include "level.h"

enum { LANES = VECTOR / 4 };
enum { VECTORS = 8, WIDE = 256, DEEP = 8 }; /* VECTORS: as many sums are under way at once */

typedef float F __attribute__((vector_size(VECTOR)));
typedef int32_t I __attribute__((vector_size(VECTOR)));

INLINE F load(const float *from) { F x; memcpy(&x, from, sizeof x); return x; }

/* Adds so many inputs' products to as many outputs as `vectors` hold. first: begin with the bias.
relu: end with it. weight, bias, out: at the first of these outputs. */
INLINE void some(const float *row, const float *weight, const float *bias, int64_t inputs,
                 int64_t outputs, int first, int relu, float *out, int vectors) {
    F sum[VECTORS];
    for (int v = 0; v < vectors; v++)
        sum[v] = !first ? load(out + v * LANES) : bias ? load(bias + v * LANES) : (F){0};
    for (int64_t i = 0; i < inputs; i++) {
        F x = row[i] - (F){0};
        for (int v = 0; v < vectors; v++) sum[v] += x * load(weight + i * outputs + v * LANES);
    }
    for (int v = 0; v < vectors; v++) {
        if (relu) sum[v] = (F)((I)sum[v] & ~(I)(sum[v] <= 0)); /* NaN keeps being one */
        memcpy(out + v * LANES, &sum[v], sizeof(F));
    }
}

/* rows: `stride` numbers apart, 0 for one row of all. weight: (networks, inputs, outputs); bias and
out: (networks, outputs). bias: may be 0. relu: 0 leaves the outputs as they are. */
EXPORT(void, row)(const float *rows, int64_t stride, const float *weight, const float *bias,
                  int64_t networks, int64_t inputs, int64_t outputs, int relu, float *out) {
    /* Where lines of the weights are long they are read whole, a few at a time: memory gives
    neighbours faster. */
    int64_t depth = outputs > WIDE ? DEEP : inputs;
    for (int64_t n = 0; n < networks; n++) {
        for (int64_t i = 0; i < inputs; i += depth) {
            const float *from = weight + i * outputs, *row = rows + i;
            int64_t here = inputs - i < depth ? inputs - i : depth, o = 0;
            int first = i == 0, last = relu && i + here == inputs;
            for (; o + VECTORS * LANES <= outputs; o += VECTORS * LANES)
                some(row, from + o, bias ? bias + o : 0, here, outputs, first, last, out + o,
                     VECTORS);
            for (; o + LANES <= outputs; o += LANES)
                some(row, from + o, bias ? bias + o : 0, here, outputs, first, last, out + o, 1);
            for (; o < outputs; o++) {
                float sum = !first ? out[o] : bias ? bias[o] : 0;
                for (int64_t j = 0; j < here; j++) sum += row[j] * from[j * outputs + o];
                out[o] = last && sum <= 0 ? 0 : sum;
            }
        }
        rows += stride, weight += inputs * outputs, out += outputs;
        if (bias) bias += outputs;
    }
}
