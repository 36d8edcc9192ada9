// Loops of the packed pass that torch has no single operators for; `loops.py` says what each takes.
//
// They are written once, over vectors of as many numbers as the instructions have that this file is compiled for, and
// keep what they compute in registers: written in torch's operators, each step would pass over memory.
//
// Matrices are of rows without gaps, unless a number of floats from row to row is given. A number that is not finite
// spoils its own row, and no other.
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, WIDE = 4;
#define EACH_LANE 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#else
constexpr int LANES = 8, WIDE = 2;
#define EACH_LANE 0, 1, 2, 3, 4, 5, 6, 7
#endif
constexpr int ROWS = 4;  // with WIDE vectors for each: as many sums as stay in registers

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));
constexpr Ints COUNTING = {EACH_LANE};

template <typename Vector, typename Number>
inline Vector load(const Number *from) {
    Vector vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

inline Floats load(const float *from) { return load<Floats>(from); }

inline Floats load_some(const float *from, int count) {  // and zeros
    Floats vector{};
    memcpy(&vector, from, count * sizeof(float));
    return vector;
}

template <typename Vector, typename Number>
inline void store(Number *to, Vector vector) {
    memcpy(to, &vector, sizeof vector);
}

inline Floats everywhere(float number) { return number - Floats{}; }

// Where a number of the second vector is no number, neither is that of the result.
inline Floats lower(Floats bound, Floats vector) { return bound < vector ? bound : vector; }
inline Floats higher(Floats bound, Floats vector) { return bound > vector ? bound : vector; }

// All lanes into one, by halves.
template <int STEP = LANES / 2, typename Combine>
inline float combined(Floats vector, Combine combine) {
    if constexpr (STEP == 0)
        return vector[0];
    else
        return combined<STEP / 2>(combine(vector, __builtin_shuffle(vector, COUNTING ^ STEP)), combine);
}

inline float lowest(Floats vector) { return combined(vector, lower); }
inline float highest(Floats vector) { return combined(vector, higher); }
inline float sum(Floats vector) {
    return combined(vector, [](Floats a, Floats b) { return a + b; });
}

// The exact GELU, by erf(x / sqrt(2)) as x P(x^2) / Q(x^2), off by 1.1e-8 at most, and by rounding. It was fitted by
// least squares, repeated with more weight where the error was large, and holds up to 5.4, where erf is 1 - 7e-8. Below
// -5.4 the result is 0 for -2e-7.
inline Floats gelu(Floats x) {
    const Floats inside = lower(everywhere(5.4f), higher(everywhere(-5.4f), x)), square = inside * inside;
    Floats above = square * 4.67734505e-08f + 1.27200546e-05f, below = square * 1.21659124e-06f + 7.24003714e-05f;
    above = above * square + 3.28644436e-04f, below = below * square + 1.85898446e-03f;
    above = above * square + 9.30170888e-03f, below = below * square + 2.83787154e-02f;
    above = above * square + 6.67445516e-02f, below = below * square + 2.50317979e-01f;
    above = above * square + 7.97884491e-01f, below = below * square + 1.0f;
    const Floats found = 0.5f * x * (1.0f + inside * above / below);
    return x < -5.4f ? Floats{} : found;
}

// e^x for x of at most 0: 2^n e^r with r from -ln(2)/2 to ln(2)/2, as Cody and Waite split it, and e^r by its series.
inline Floats exponential(Floats x) {
    x = higher(everywhere(-87.0f), x);
    const Ints whole = __builtin_convertvector(x * 1.44269504f - 0.5f, Ints);  // rounds, as all are below 0
    const Floats n = __builtin_convertvector(whole, Floats), r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats power = r * 1.98412698e-4f + 1.38888889e-3f;
    power = power * r + 8.33333333e-3f;
    power = power * r + 4.16666667e-2f;
    power = power * r + 1.66666667e-1f;
    power = power * r + 0.5f;
    power = power * r + 1.0f;
    power = power * r + 1.0f;
    return (Floats)((Ints)power + (whole << 23));
}

struct Round {
    const float *kept;  // 0 for columns that count as 0, else 1
    const int64_t *columns;  // these
    long width, apart;
    float levels;

    void operator()(const float *row, uint8_t *whole, float *unit, float *beside) const;
};

// One row between its smallest and largest number, which follows the columns apart in `beside`.
void Round::operator()(const float *row, uint8_t *whole, float *unit, float *beside) const {
    for (long n = 0; n < apart; n++) beside[n] = row[columns[n]];
    const long full = width - width % LANES;
    const int rest = width % LANES;
    const auto last = [&] { return load_some(row + full, rest) * load_some(kept + full, rest); };
    Floats low = everywhere(row[0] * kept[0]), high = low, odd = low - low;
    const auto see = [&](Floats vector) {
        low = lower(low, vector), high = higher(high, vector), odd += vector - vector;  // 0, or no number
    };
    for (long i = 0; i < full; i += LANES) see(load(row + i) * load(kept + i));
    if (rest) {
        Floats vector = last();
        for (int lane = rest; lane < LANES; lane++) vector[lane] = row[0] * kept[0];
        see(vector);
    }
    const float least = lowest(low), range = highest(high) - least;
    *unit = (range > 1e-30f ? range : 1e-30f) / levels + sum(odd);
    beside[apart] = least;
    const float scale = levels / (range > 1e-30f ? range : 1e-30f);
    const auto rounded = [&](Floats vector) {
        return __builtin_convertvector(__builtin_convertvector((vector - least) * scale + 0.5f, Ints), Bytes);
    };
    for (long i = 0; i < full; i += LANES) store(whole + i, rounded(load(row + i) * load(kept + i)));
    if (rest) {
        const Bytes bytes = rounded(last());
        memcpy(whole + full, &bytes, rest);
    }
}

struct Finish {
    const float *sums, *units, *beside, *columns, *residual;
    float *output;
    long out, besides;  // the last of them is the bias, beside which stands a 1
    bool activated;

    // COUNT rows from one on, and VECTORS of their numbers from one on; or fewer than LANES of them.
    template <int COUNT, int VECTORS>
    inline void tile(long row, long from, int some = LANES) const {
        const auto read = [&](const float *matrix, long line, int vector) {
            const float *place = matrix + line * out + from + vector * LANES;
            return some == LANES ? load(place) : load_some(place, some);
        };
        Floats totals[COUNT][VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            const Floats bias = read(columns, besides, v);
            for (int n = 0; n < COUNT; n++) {
                totals[n][v] = read(sums, row + n, v) * units[row + n] + bias;
                if (residual) totals[n][v] += read(residual, row + n, v);
            }
        }
        for (long j = 0; j < besides; j++)
            for (int v = 0; v < VECTORS; v++) {
                const Floats column = read(columns, j, v);
                for (int n = 0; n < COUNT; n++) totals[n][v] += column * beside[(row + n) * besides + j];
            }
        for (int n = 0; n < COUNT; n++)
            for (int v = 0; v < VECTORS; v++) {
                const Floats found = activated ? gelu(totals[n][v]) : totals[n][v];
                memcpy(output + (row + n) * out + from + v * LANES, &found, some * sizeof(float));
            }
    }

    template <int COUNT>
    void lines(long row) const {
        long from = 0;
        for (; from + WIDE * LANES <= out; from += WIDE * LANES) tile<COUNT, WIDE>(row, from);
        for (; from + LANES <= out; from += LANES) tile<COUNT, 1>(row, from);
        if (from < out) tile<COUNT, 1>(row, from, static_cast<int>(out - from));
    }
};

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 6;  // by WIDE vectors: with those of a weight, and one for a row, as many as there are
constexpr int PANEL = WIDE * LANES;

// Sums of products of 8 bits for COUNT rows and VECTORS of outputs. A weight is laid out as four bytes of each output of
// its panel, and then the next four.
template <int COUNT, int VECTORS>
inline void multiply_bytes(const uint8_t *rows, long width, const int8_t *panel, const float *weight_units,
                           float *output, long out) {
    Ints totals[COUNT][VECTORS];
#pragma GCC unroll 8
    for (int n = 0; n < COUNT; n++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) totals[n][v] = Ints{};
    for (long i = 0; i < width; i += 4, panel += VECTORS * LANES * 4) {
        Ints weights[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) weights[v] = load<Ints>(panel + v * LANES * 4);
#pragma GCC unroll 8
        for (int n = 0; n < COUNT; n++) {
            int32_t bytes;
            memcpy(&bytes, rows + n * width + i, 4);
            const Ints row = bytes - Ints{};
            // Of the intrinsic, gcc 12 makes code that copies each sum to memory.
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++)
                asm("vpdpbusd %2, %1, %0" : "+v"(totals[n][v]) : "v"(row), "v"(weights[v]));
        }
    }
#pragma GCC unroll 8
    for (int n = 0; n < COUNT; n++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            store(output + n * out + v * LANES,
                  __builtin_convertvector(totals[n][v], Floats) * load(weight_units + v * LANES));
}

template <int VECTORS>
void multiply_panel(const uint8_t *rows, long count, long width, const int8_t *panel, const float *weight_units,
                    long from, const Finish &finish) {
    long row = 0;
    for (; row + TILE_ROWS <= count; row += TILE_ROWS) {
        float *to = finish.output + row * finish.out + from;
        multiply_bytes<TILE_ROWS, VECTORS>(rows + row * width, width, panel, weight_units + from, to, finish.out);
        finish.tile<TILE_ROWS, VECTORS>(row, from);
    }
    for (; row < count; row++) {
        float *to = finish.output + row * finish.out + from;
        multiply_bytes<1, VECTORS>(rows + row * width, width, panel, weight_units + from, to, finish.out);
        finish.tile<1, VECTORS>(row, from);
    }
}
#endif

// Exchanges numbers between lines whose places differ in one bit, STEP, and then in the higher ones.
template <int STEP>
inline void exchange(Floats (&lines)[LANES]) {
    if constexpr (STEP < LANES) {
        const Ints upper = (COUNTING & STEP) != 0;  // all bits, where a lane has that bit
        for (int n = 0; n < LANES; n++)
            if (!(n & STEP)) {
                const Floats a = lines[n], b = lines[n + STEP];
                lines[n] = __builtin_shuffle(a, b, COUNTING + (upper & (LANES - STEP)));
                lines[n + STEP] = __builtin_shuffle(a, b, COUNTING + STEP + (upper & (LANES - STEP)));
            }
        exchange<2 * STEP>(lines);
    }
}

// Turns a square of numbers: row n of `to` is column n of `from`, whose rows are `apart`. Missing rows are zeros.
inline void transpose(const float *from, long apart, long rows, float *to, long to_apart) {
    Floats lines[LANES];
    for (int n = 0; n < LANES; n++) lines[n] = n < rows ? load(from + n * apart) : Floats{};
    exchange<1>(lines);
    for (int n = 0; n < LANES; n++) store(to + n * to_apart, lines[n]);
}

// Sums over `terms` of factors[row][term] * matrix[term], for COUNT rows and VECTORS of the matrix's columns.
template <int COUNT, int VECTORS>
inline void multiply(const float *factors, long factors_apart, const float *matrix, long matrix_apart, long terms,
                     float *output, long output_apart) {
    Floats totals[COUNT][VECTORS];
    for (int n = 0; n < COUNT; n++)
        for (int v = 0; v < VECTORS; v++) totals[n][v] = load(matrix + v * LANES) * factors[n * factors_apart];
    for (long term = 1; term < terms; term++)
        for (int v = 0; v < VECTORS; v++) {
            const Floats line = load(matrix + term * matrix_apart + v * LANES);
            for (int n = 0; n < COUNT; n++) totals[n][v] += line * factors[n * factors_apart + term];
        }
    for (int n = 0; n < COUNT; n++)
        for (int v = 0; v < VECTORS; v++) store(output + n * output_apart + v * LANES, totals[n][v]);
}

// The same for all columns of the matrix, a multiple of LANES.
template <int COUNT>
void multiply_all(const float *factors, long factors_apart, const float *matrix, long matrix_apart, long terms,
                  float *output, long output_apart, long columns) {
    for (long from = 0, vectors; from < columns; from += vectors * LANES) {
        vectors = (columns - from) / LANES < WIDE ? (columns - from) / LANES : WIDE;
        const auto some = vectors == 1   ? multiply<COUNT, 1>
                          : vectors == 2 ? multiply<COUNT, 2>
                          : vectors == 3 ? multiply<COUNT, 3>
                                         : multiply<COUNT, 4>;
        some(factors, factors_apart, matrix + from, matrix_apart, terms, output + from, output_apart);
    }
}

// The weights of attention, but for their sum, which is returned; scores past `length` count as minus infinity.
float soften(float *scores, long length, long padded, float scale) {
    const Ints hidden = COUNTING >= static_cast<int>(length - padded + LANES);  // of the last vector
    const auto seen = [&](long key) {
        const Floats found = load(scores + key);
        return key + LANES < padded ? found : hidden ? everywhere(-INFINITY) : found;
    };
    Floats most = everywhere(-INFINITY), total{};
    for (long key = 0; key < padded; key += LANES) most = higher(most, seen(key));
    const float largest = highest(most);
    for (long key = 0; key < padded; key += LANES) {
        const Floats weights = exponential((seen(key) - largest) * scale);
        store(scores + key, weights), total += weights;
    }
    return sum(total);
}

struct Attend {
    const float *query, *key, *value;
    float *output, *scratch;
    long apart, output_apart, length, width;
    float scale;

    template <int COUNT>
    void queries(long first, const float *keys, long padded, float *scores) const {
        multiply_all<COUNT>(query + first * apart, apart, keys, padded, width, scores, padded, padded);
        float totals[COUNT];
        for (int n = 0; n < COUNT; n++) totals[n] = soften(scores + n * padded, length, padded, scale);
        float *to = output + first * output_apart;
        multiply_all<COUNT>(scores, padded, value, apart, length, to, output_apart, width);
        for (int n = 0; n < COUNT; n++)
            for (long i = 0; i < width; i += LANES)
                store(to + n * output_apart + i, load(to + n * output_apart + i) / totals[n]);
    }

    void operator()() const {
        const long padded = (length + LANES - 1) / LANES * LANES;
        float *keys = scratch, *scores = scratch + width * padded;
        for (long n = 0; n < length; n += LANES)
            for (long i = 0; i < width; i += LANES)
                transpose(key + n * apart + i, apart, length - n, keys + i * padded + n, padded);
        long first = 0;
        for (; first + ROWS <= length; first += ROWS) queries<ROWS>(first, keys, padded, scores);
        if (length - first == 3) queries<3>(first, keys, padded, scores);
        if (length - first == 2) queries<2>(first, keys, padded, scores);
        if (length - first == 1) queries<1>(first, keys, padded, scores);
    }
};

}  // namespace

extern "C" {

int headstart_version() { return 1; }

int headstart_lanes() { return LANES; }

void headstart_round_rows(const float *rows, long rows_apart, long count, const float *kept, const int64_t *columns,
                          long width, long apart, float levels, uint8_t *whole, float *units, float *beside) {
    const Round round{kept, columns, width, apart, levels};
    for (long n = 0; n < count; n++)
        round(rows + n * rows_apart, whole + n * width, units + n, beside + n * (apart + 1));
}

void headstart_finish_rows(const float *sums, long count, long out, const float *units, const float *beside,
                           long besides, const float *columns, const float *residual, int activated, float *output) {
    const Finish finish{sums, units, beside, columns, residual, output, out, besides, activated != 0};
    long row = 0;
    for (; row + ROWS <= count; row += ROWS) finish.lines<ROWS>(row);
    for (; row < count; row++) finish.lines<1>(row);
}

#if defined(__AVX512F__)
constexpr long TOGETHER = 16 * TILE_ROWS;  // rows whose bytes and results stay in a core's own cache

long headstart_scratch(long width, long apart) { return TOGETHER * (sizeof(float) * (apart + 2) + width); }

// Rounds rows, multiplies and finishes them. The processor must have VNNI; `width` is a multiple of 4, `out` of LANES.
void headstart_linear(const float *rows, long rows_apart, long count, const float *kept, const int64_t *columns,
                      long width, long apart, float levels, const int8_t *weights, const float *weight_units, long out,
                      const float *beside_columns, const float *residual, int activated, float *output,
                      void *scratch) {
    const Round round{kept, columns, width, apart, levels};
    float *units = static_cast<float *>(scratch), *beside = units + TOGETHER;
    uint8_t *whole = reinterpret_cast<uint8_t *>(beside + TOGETHER * (apart + 1));
    for (long start = 0; start < count; start += TOGETHER) {
        const long some = count - start < TOGETHER ? count - start : TOGETHER;
        for (long n = 0; n < some; n++)
            round(rows + (start + n) * rows_apart, whole + n * width, units + n, beside + n * (apart + 1));
        float *to = output + start * out;
        const float *added = residual ? residual + start * out : nullptr;
        const Finish finish{to, units, beside, beside_columns, added, to, out, apart + 1, activated != 0};
        for (long from = 0; from < out; from += PANEL) {
            const long vectors = (out - from) / LANES;
            const auto multiply = vectors == 1   ? multiply_panel<1>
                                  : vectors == 2 ? multiply_panel<2>
                                  : vectors == 3 ? multiply_panel<3>
                                                 : multiply_panel<4>;
            multiply(whole, some, width, weights + from * width, weight_units, from, finish);
        }
    }
}
#endif

void headstart_attend(const float *query_key_value, long apart, long sequences, long length, long heads,
                      long key_heads, long width, float scale, float *output, float *scratch) {
    for (long n = 0; n < sequences; n++)
        for (long head = 0; head < heads; head++) {
            const float *tokens = query_key_value + n * length * apart;
            const float *key = tokens + (heads + head / (heads / key_heads)) * width;
            float *to = output + (n * length * heads + head) * width;
            Attend{tokens + head * width, key, key + key_heads * width, to, scratch, apart, heads * width, length,
                   width, scale}();
        }
}
}
