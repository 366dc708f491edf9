/* The time loops of neurons, each in one pass over memory: what `alphabet`, `coding`, `membrane` and `unrolled` say in
   torch, operation by operation in the same order, so that spikes are the same to the last bit (compile with
   -ffp-contract=off). All arrays are of float32. Built and called by `native`. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum { SMALL = 1 << 15 };                                /* for fewer values, one thread is faster than several that must meet */

/* -- coded neurons -------------------------------------------------------------------------------------------------- */

/* A table broadcasts against the rows of one image: row r reads it from offset[r], one value (step 0) or one for each
   value of the row (step 1). */
struct table {
    const float *values;
    const int64_t *offset;
    int64_t step;
};

enum { PRIOR, BIAS, LEAST, LEVELS };                     /* tables of their own shapes; those from LEVELS on share one */
enum { THRESHOLD = LEVELS, GAIN, FLOOR, STEPS, MOST_STEPS = 3, TABLES = STEPS + MOST_STEPS };

struct coded {
    int64_t rows, width;                                 /* of one image */
    const int64_t *input;                                /* where each row of an image's input begins */
    struct table tables[TABLES];
    int64_t steps, count, is_signed;
    float keep, renew, scale, weight;                    /* a, 1 - a, 1 / b, b */
};

/* The spike, NaN where what it is of is not finite: a zero of the sign of u changes no bit of it. */
INLINE float spread(float spike, float u) { return spike + 0.0f * u; }

/* The largest power of two up to z >= 0. */
INLINE float octave(float z) {
    uint32_t bits;
    memcpy(&bits, &z, 4);
    bits &= 0x7f800000u;
    memcpy(&z, &bits, 4);
    return z;
}

/* The spike for u; the last two arguments are known where this is inlined. `i` is where its levels are. */
INLINE float rounded(float u, float *const *t, int64_t i, const int steps, const int is_signed) {
    const float y = is_signed ? fabsf(u) : (u < 0.0f ? 0.0f : u), z = y * t[GAIN][i], power = octave(z);
    float level = power;
    for (int k = 0; k < steps; k++) {
        const float above = power * t[STEPS + k][i];
        level = z >= above ? above : level;
    }
    level = level < t[FLOOR][i] ? t[FLOOR][i] : level;
    level = (level > 1.0f ? 1.0f : level) * t[THRESHOLD][i];
    level = y >= t[LEAST][i] ? level : 0.0f;
    return spread(is_signed ? copysignf(level, u) : level, u);
}

/* A row, where there is one spike to a timestep. `held` is h[t], `s` takes the spikes unless it is NULL. */
INLINE void single(const struct coded *c, float *const *t, const float *x, const float *held, float *restrict out,
                   float *restrict s, const int vary, const int steps, const int is_signed) {
    const float scale = c->scale, weight = c->weight, *bias = t[BIAS];
    const int64_t width = c->width;
    float *rows[TABLES];
    memcpy(rows, t, sizeof rows);                        /* a copy of its own, which no store can be thought to change */
    for (int64_t j = 0; j < width; j++) {
        const float m = held[j], sent = rounded((x[j] - m) * scale, rows, vary ? j : 0, steps, is_signed);
        if (s) s[j] = sent;
        out[j] = m + weight * (sent + bias[j]);
    }
}

/* A row of the spikes for what is `left`, which is lowered by them. */
INLINE void next(const struct coded *c, float *const *t, float *restrict left, float *restrict s, const int vary,
                 const int steps, const int is_signed) {
    const int64_t width = c->width;
    float *rows[TABLES];
    memcpy(rows, t, sizeof rows);
    for (int64_t j = 0; j < width; j++) {
        s[j] = rounded(left[j], rows, vary ? j : 0, steps, is_signed);
        left[j] -= s[j];
    }
}

/* Calls one of the above with its last three arguments known. */
#define KNOWN_SIGN(f, steps, ...) \
    if (vary && c->is_signed) f(__VA_ARGS__, 1, steps, 1); \
    else if (vary) f(__VA_ARGS__, 1, steps, 0); \
    else if (c->is_signed) f(__VA_ARGS__, 0, steps, 1); \
    else f(__VA_ARGS__, 0, steps, 0);
#define KNOWN(f, ...) \
    switch (c->steps) { \
        case 0: KNOWN_SIGN(f, 0, __VA_ARGS__) break; \
        case 1: KNOWN_SIGN(f, 1, __VA_ARGS__) break; \
        case 2: KNOWN_SIGN(f, 2, __VA_ARGS__) break; \
        default: KNOWN_SIGN(f, 3, __VA_ARGS__) \
    }

/* One timestep of `images` images. `before` is m[t-1], NULL for the prior; `after` takes m[t] and may be `before`; `sent` takes
   the spikes, one array after the other, unless it is NULL. Returns -1 if there is no memory. */
int coded_step(const struct coded *c, const float *x, int64_t stride, const float *before, float *after, float *sent,
               int64_t images) {
    const int64_t width = c->width, rows = c->rows, size = images * rows * width;
    const int vary = c->tables[LEVELS].step || c->tables[LEAST].step;
    int failed = 0;
#pragma omp parallel if (size > SMALL)
    {
        float *own = calloc(width * (TABLES + 4), sizeof(float));
        float *held = own, *left = own + width, *total = own + 2 * width, *spikes = own + 3 * width;
        const float *filled[TABLES] = {0};
        float *t[TABLES];
        if (!own) failed = 1;
        for (int k = 0; own && k < TABLES; k++) t[k] = own + (k + 4) * width;   /* no bias is one of 0 */
#pragma omp for collapse(2)
        for (int64_t image = 0; image < images; image++)
            for (int64_t row = 0; row < rows; row++) {
                if (failed) continue;
                const int64_t place = (image * rows + row) * width;
                const float *in = x + image * stride + c->input[row];
                for (int k = 0; k < TABLES; k++) {
                    const struct table *table = &c->tables[k];
                    if (!table->values) continue;
                    const float *values = table->values + table->offset[row];
                    if (table->step || (k >= LEAST && !vary)) {
                        t[k] = (float *)values;
                    } else if (filled[k] != values) {
                        const float value = *values;
                        for (int64_t j = 0; j < width; j++) t[k][j] = value;
                        filled[k] = values;
                    }
                }
                const float *m = before ? before + place : t[PRIOR];
                float *out = after + place;
                if (c->keep != 1.0f) {
                    for (int64_t j = 0; j < width; j++) held[j] = c->keep * m[j] + c->renew * t[PRIOR][j];
                    m = held;
                }
                if (c->count == 1) {
                    float *s = sent ? sent + place : NULL;
                    KNOWN(single, c, t, in, m, out, s)
                    continue;
                }
                for (int64_t j = 0; j < width; j++) left[j] = (in[j] - m[j]) * c->scale, total[j] = 0.0f;
                for (int64_t n = 0; n < c->count; n++) {
                    float *s = sent ? sent + n * size + place : spikes;
                    KNOWN(next, c, t, left, s)
                    for (int64_t j = 0; j < width; j++) total[j] += s[j];
                }
                for (int64_t j = 0; j < width; j++) out[j] = m[j] + c->weight * (total[j] + t[BIAS][j]);
            }
        free(own);
    }
    return failed ? -1 : 0;
}

/* -- neurons with a membrane ---------------------------------------------------------------------------------------- */

enum { BINARY, TERNARY, INTEGER };                       /* what a neuron sends */
enum { SIGMOID, ATAN, TRIANGLE, RECTANGLE, PIECEWISE };  /* surrogates, in the order of `surrogate.SHAPES` */

struct membrane {
    int64_t sends, decays, hard, detached, surrogate;
    float leak, threshold, start, reset, levels, alpha;
};

enum { BLOCK = 512 };                                    /* values whose timesteps are computed together, so as to stay cached */

INLINE float charged(float x, float v, float leak, const int decays) {
    return decays ? v + (x - v) * leak : v - v * leak + x;
}

/* The spikes of h, and the membrane after them. The last three arguments are known where this is inlined. */
INLINE void step(const struct membrane *c, const float *x, float *restrict v, float *restrict h, float *restrict s, int64_t n,
                 const int sends, const int decays, const int hard) {
    const float threshold = c->threshold, leak = c->leak, reset = c->reset, most = c->levels;
    for (int64_t i = 0; i < n; i++) {
        const float charge = charged(x[i], v[i], leak, decays);
        float sent;
        if (sends == INTEGER) {
            sent = floorf(charge / threshold + 0.5f);
            sent = sent < 0.0f ? 0.0f : sent;
            sent = sent > most ? most : sent;
        } else {
            sent = charge >= threshold ? 1.0f : 0.0f;
            if (sends == TERNARY) sent -= charge <= -threshold ? 1.0f : 0.0f;
        }
        sent = spread(sent, charge);
        if (h) h[i] = charge;
        if (s) s[i] = sent;
        v[i] = hard ? charge - sent * (charge - reset) : charge - sent * threshold;
    }
}

INLINE void any_step(const struct membrane *c, const float *x, float *v, float *h, float *s, int64_t n) {
    if (c->sends == INTEGER) step(c, x, v, h, s, n, INTEGER, 0, 0);
    else if (c->sends == TERNARY && c->decays) step(c, x, v, h, s, n, TERNARY, 1, 0);
    else if (c->sends == TERNARY) step(c, x, v, h, s, n, TERNARY, 0, 0);
    else if (c->decays && c->hard) step(c, x, v, h, s, n, BINARY, 1, 1);
    else if (c->decays) step(c, x, v, h, s, n, BINARY, 1, 0);
    else if (c->hard) step(c, x, v, h, s, n, BINARY, 0, 1);
    else step(c, x, v, h, s, n, BINARY, 0, 0);
}

/* Spikes of T timesteps of n neurons. `x` has a timestep every `stride` values; `before` is v[-1], NULL for rest; `after`
   takes v[T-1] unless it is NULL. */
void membrane_forward(const struct membrane *c, const float *x, int64_t stride, const float *before, float *s, float *after,
                      int64_t T, int64_t n) {
#pragma omp parallel for if (T * n > SMALL)
    for (int64_t first = 0; first < n; first += BLOCK) {
        const int64_t size = n - first < BLOCK ? n - first : BLOCK;
        float v[BLOCK];
        for (int64_t i = 0; i < size; i++) v[i] = before ? before[first + i] : c->start;
        for (int64_t t = 0; t < T; t++) any_step(c, x + t * stride + first, v, NULL, s + t * n + first, size);
        if (after) memcpy(after + first, v, sizeof(float) * size);
    }
}

/* e^x for -87 <= x <= 0, to about the last bit: 2^k times a polynomial in what is left of x. */
INLINE float exponential(float x) {
    const float k = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  /* the nearest integer: no fractions at 1.5 * 2^23 */
    const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.98756915e-4f;
    p = p * r + 1.39819995e-3f;
    p = p * r + 8.33345190e-3f;
    p = p * r + 4.16657962e-2f;
    p = p * r + 1.66666654e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = ((int32_t)k + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

INLINE float slope(float u, float alpha, const int surrogate) {
    const float size = fabsf(alpha * u), square = 1.57079633f * size * (1.57079633f * size);
    const float decayed = surrogate == SIGMOID ? exponential(size < 87.0f ? -size : -87.0f) : 0.0f;
    switch (surrogate) {
        case SIGMOID: return alpha * decayed / ((1.0f + decayed) * (1.0f + decayed));
        case ATAN: return alpha / 2 / (1.0f + square);
        case TRIANGLE: return size < 1.0f ? alpha * (1.0f - size) : 0.0f;
        case RECTANGLE: return fabsf(u) < 0.5f / alpha ? alpha : 0.0f;
        default: return fabsf(u) <= 1.0f / alpha ? alpha / 2 : 0.01f;
    }
}

INLINE void back(const struct membrane *c, const float *h, const float *grad_s, float *restrict grad_v, float *restrict grad_x,
                 int64_t n, const int surrogate) {
    const float keep = 1.0f - c->leak, gain = c->decays ? c->leak : 1.0f, threshold = c->threshold, alpha = c->alpha;
    const float clears = c->hard ? threshold : INFINITY;   /* membranes from here on are cleared */
    const int64_t hard = c->hard, detached = c->detached;
    for (int64_t i = 0; i < n; i++) {
        const float charge = h[i], kept = grad_v[i], by_spike = slope(charge - threshold, alpha, surrogate);
        float grad = by_spike * grad_s[i];
        const float lowered = hard ? charge : threshold;
        grad -= detached ? 0.0f : by_spike * (kept * lowered);
        grad += charge >= clears ? 0.0f : kept;
        grad_x[i] = grad * gain;
        grad_v[i] = grad * keep;
    }
}

/* The gradients of `membrane_forward` of binary neurons that are reset to 0 or softly, from those of the spikes and of the
   last membrane (NULL for 0). The membranes are computed again: that is faster than to keep them. `grad_before` takes the
   gradient of v[-1] unless it is NULL. Returns -1 if there is no memory. */
int membrane_backward(const struct membrane *c, const float *x, int64_t stride, const float *before, const float *grad_s,
                      const float *grad_after, float *grad_x, float *grad_before, int64_t T, int64_t n) {
    int failed = 0;
#pragma omp parallel if (T * n > SMALL)
    {
        float *h = malloc(sizeof(float) * BLOCK * T);
        if (!h) failed = 1;
#pragma omp for
        for (int64_t first = 0; first < n; first += BLOCK) {
            if (failed) continue;
            const int64_t size = n - first < BLOCK ? n - first : BLOCK;
            float v[BLOCK], g[BLOCK];
            for (int64_t i = 0; i < size; i++) v[i] = before ? before[first + i] : c->start;
            for (int64_t t = 0; t < T; t++) any_step(c, x + t * stride + first, v, h + t * BLOCK, NULL, size);
            for (int64_t i = 0; i < size; i++) g[i] = grad_after ? grad_after[first + i] : 0.0f;
            for (int64_t t = T - 1; t >= 0; t--) {
                const float *of = h + t * BLOCK, *given = grad_s + t * n + first;
                float *out = grad_x + t * n + first;
                switch (c->surrogate) {
                    case SIGMOID: back(c, of, given, g, out, size, SIGMOID); break;
                    case ATAN: back(c, of, given, g, out, size, ATAN); break;
                    case TRIANGLE: back(c, of, given, g, out, size, TRIANGLE); break;
                    case RECTANGLE: back(c, of, given, g, out, size, RECTANGLE); break;
                    default: back(c, of, given, g, out, size, PIECEWISE);
                }
            }
            if (grad_before) memcpy(grad_before + first, g, sizeof(float) * size);
        }
        free(h);
    }
    return failed ? -1 : 0;
}

/* -- calibration ---------------------------------------------------------------------------------------------------- */

enum { AT_ONCE = 4, MOST_BINS = 512 };                   /* histograms side by side, so that equal neighbours need not wait */

/* Adds the magnitudes of the innovations of a timestep, (x[t] - h[t]) / b, to counts[bins]: each octave has eight bins, the
   first of which begins at bits `first` << 20; what is below or above counts in the outermost bins. The arguments before
   `first` are those of `coded_step`. */
void innovations(const struct coded *c, const float *x, int64_t stride, const float *before, int64_t images, int64_t first,
                 int64_t bins, int64_t *counts) {
    const struct table *prior = &c->tables[PRIOR];
    const float keep = c->keep, renew = c->renew, scale = c->scale;
    const int64_t width = c->width, rows = c->rows, is_signed = c->is_signed;
    const int32_t lowest = first, highest = first + bins - 1;
#pragma omp parallel if (images * rows * width > SMALL)
    {
        int64_t own[MOST_BINS * AT_ONCE] = {0};
#pragma omp for collapse(2)
        for (int64_t image = 0; image < images; image++)
            for (int64_t row = 0; row < rows; row++)
                for (int64_t start = 0; start < width; start += BLOCK) {
                    const int64_t size = width - start < BLOCK ? width - start : BLOCK;
                    const float *in = x + image * stride + c->input[row] + start, *r = prior->values + prior->offset[row];
                    float rest[BLOCK], held[BLOCK];
                    int32_t bin[BLOCK];
                    for (int64_t j = 0; j < size && !prior->step; j++) rest[j] = *r;
                    r = prior->step ? r + start : rest;
                    const float *m = before ? before + (image * rows + row) * width + start : r;
                    for (int64_t j = 0; j < size && keep != 1.0f; j++) held[j] = keep * m[j] + renew * r[j];
                    m = keep != 1.0f ? held : m;
                    for (int64_t j = 0; j < size; j++) {
                        const float u = (in[j] - m[j]) * scale, y = is_signed ? fabsf(u) : (u > 0.0f ? u : 0.0f);
                        int32_t bits;
                        memcpy(&bits, &y, 4);
                        bits >>= 20;
                        bits = bits < lowest ? lowest : bits;
                        bin[j] = ((bits > highest ? highest : bits) - lowest) * AT_ONCE + (int32_t)j % AT_ONCE;
                    }
                    for (int64_t j = 0; j < size; j++) own[bin[j]]++;
                }
        for (int64_t bin = 0; bin < bins; bin++)
            for (int k = 0; k < AT_ONCE; k++)
                if (own[bin * AT_ONCE + k]) {
#pragma omp atomic
                    counts[bin] += own[bin * AT_ONCE + k];
                }
    }
}

/* -- the process ---------------------------------------------------------------------------------------------------- */

/* Whether denormal numbers are 0, read and written, in this thread and in those that OpenMP keeps for it. */
void flush_denormals(int on) {
#pragma omp parallel
    {
#if defined(__SSE2__)
        const unsigned int both = 0x8040;                /* FTZ and DAZ */
        _mm_setcsr(on ? _mm_getcsr() | both : _mm_getcsr() & ~both);
#elif defined(__aarch64__)
        const uint64_t both = 1 << 24;                   /* FZ */
        uint64_t mode;
        __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
        mode = on ? mode | both : mode & ~both;
        __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#else
        (void)on;
#endif
    }
}
