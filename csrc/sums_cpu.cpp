// Sums of a kernel's results on the CPU: along each dimension in which an output has the stride 0.
//
// The loop is cut into tiles. The kernel writes the results of a tile into memory that stays in the caches; their sums
// go to the output where no other tile has a part in them, else to accumulators. How the loop is cut depends on sizes
// and strides alone: any number of threads gives the same bits. Up to 64 numbers, those of a tile in one lane, are
// added in the type that is computed in, all others in double.
#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "lanes.h"
#include "loops_cpu.h"

namespace torchad_ext {
namespace {

constexpr int64_t most_of_tile = 2048;  // elements
constexpr int64_t of_a_task = 32768;    // elements worth waking a thread for
constexpr int64_t most_tasks = 64;      // each may have accumulators of its own

// A tile as an output sees it: neighbouring dimensions merged where both are summed, or kept and stepped as one.
struct Tile {
  int dims = 0;
  int64_t sizes[most_dims + 1], strides[most_dims + 1];
  int64_t sums = 1;

  void add(int64_t size, int64_t stride) {
    if (size == 1) return;
    if (stride != 0) sums *= size;
    if (dims > 0) {
      int64_t& last = sizes[dims - 1];
      const int64_t step = strides[dims - 1];
      if (step == 0 ? stride == 0 : stride == step * last) {
        last *= size;
        return;
      }
    }
    sizes[dims] = size;
    strides[dims++] = stride;
  }

  // Calls f(offset in the operand of the strides, place among the sums) for each index of the dimensions from
  // `first` on, of which those below have so many sums.
  template <class F>
  void each(int first, int64_t below, F f) const {
    int64_t position[most_dims + 1];
    for (int d = first; d < dims; ++d) position[d] = 0;
    int64_t offset = 0, place = 0;
    while (true) {
      f(offset, place);
      int64_t step = below;
      int d = first;
      for (; d < dims; ++d) {
        const int64_t of_place = strides[d] == 0 ? 0 : step;
        if (strides[d] != 0) step *= sizes[d];
        offset += strides[d];
        place += of_place;
        if (++position[d] < sizes[d]) break;
        offset -= strides[d] * sizes[d];
        place -= of_place * sizes[d];
        position[d] = 0;
      }
      if (d == dims) return;
    }
  }
};

// The arithmetic of a type.
template <class T>
struct Numbers {
  using C = compute_t<T>;
  using V = Vector<C>;
  static constexpr int width = lanes<T>;
  static constexpr int64_t together = 64;  // numbers of short rows that are added as one row
  static constexpr int wide = lanes<double>;

  // The parts of a vector in double: f(part, place of its first lane, lanes that count).
  template <class F>
  static void each_wide(V v, int64_t count, F f) {
    if constexpr (std::is_same_v<C, double>) {
      f(v, 0, count);
    } else {
      const Doubles parts(v);
      f(parts.half[0], 0, std::min<int64_t>(wide, count));
      if (count > wide) f(parts.half[1], wide, count - wide);
    }
  }

  static void add(double* to, V v, int64_t count) {
    each_wide(v, count, [&](Double part, int at, int64_t n) {
      n == wide ? store(to + at, load(to + at) + part) : store_some(to + at, load_some(to + at, n) + part, n);
    });
  }

  static V rounded(const double* from, int64_t count) {
    const auto part = [&](int64_t n) { return n >= wide ? load(from) : load_some(from, n); };
    if constexpr (std::is_same_v<C, double>) {
      return part(count);
    } else {
      const Double first = part(count);
      from += wide;
      return V(Doubles{first, count > wide ? part(count - wide) : Double{}});
    }
  }

  static double sum_of_neighbours(const T* x, int64_t n) {
    if constexpr (std::is_same_v<T, C>) {
      if (n < 8) {
        C sum = x[0];
        for (int64_t i = 1; i < n; ++i) sum += x[i];
        return double(sum);
      }
    }
    V chain[4] = {};
    int64_t i = 0;
    for (; i + 4 * width <= n; i += 4 * width) {
      for (int c = 0; c < 4; ++c) chain[c] += load(x + i + c * width);
    }
    for (; i + width <= n; i += width) chain[0] += load(x + i);
    if (i < n) chain[1] += load_some(x + i, n - i);
    const V sum = (chain[0] + chain[1]) + (chain[2] + chain[3]);
    return double(Reduce<Reduction::sum>::across<width / 2>(sum)[0]);
  }

  // to[j] += the sum of x[r * n + j] over the rows r.
  static void add_rows(const T* x, int64_t n, int64_t rows, double* to) {
    for (int64_t j = 0; j < n; j += width) {
      const int64_t count = std::min<int64_t>(width, n - j);
      const T* at = x + j;
      V chain[4] = {};
      int64_t r = 0;
      const auto add_all = [&](auto row) {
        for (; r + 4 <= rows; r += 4, at += 4 * n) {
          for (int c = 0; c < 4; ++c) chain[c] += row(at + c * n);
        }
        for (; r < rows; ++r, at += n) chain[0] += row(at);
      };
      if (count == width) {
        add_all([](const T* from) { return load(from); });
      } else {
        add_all([count](const T* from) { return load_some(from, count); });
      }
      add(to + j, (chain[0] + chain[1]) + (chain[2] + chain[3]), count);
    }
  }

  static void add_short_rows(const T* x, int64_t n, int64_t rows, double* to) {
    if (n >= width || rows < 2 * (together / n)) return add_rows(x, n, rows, to);
    const int64_t group = together / n, groups = rows / group, done = groups * group;
    double sums[together] = {};
    add_rows(x, group * n, groups, sums);
    for (int64_t g = 0; g < group; ++g) {
      for (int64_t j = 0; j < n; ++j) to[j] += sums[g * n + j];
    }
    add_rows(x + done * n, n, rows - done, to);
  }

  // Adds a dense tile to its sums.
  static void add_tile(const void* numbers, const Tile& tile, double* sums) {
    const T* x = static_cast<const T*>(numbers);
    if (tile.dims == 0) {
      sums[0] += double(load_some(x, 1)[0]);
      return;
    }
    const int64_t n = tile.sizes[0];
    if (tile.strides[0] == 0) {
      tile.each(1, 1, [&](int64_t, int64_t place) {
        sums[place] += sum_of_neighbours(x, n);
        x += n;
      });
      return;
    }
    const bool has_rows = tile.dims > 1 && tile.strides[1] == 0;
    const int64_t rows = has_rows ? tile.sizes[1] : 1;
    tile.each(has_rows ? 2 : 1, n, [&](int64_t, int64_t place) {
      add_short_rows(x, n, rows, sums + place);
      x += n * rows;
    });
  }

  static void write(void* numbers, int64_t stride, const double* from, int64_t n) {
    T* const to = static_cast<T*>(numbers);
    for (int64_t j = 0; j < n; j += width) {
      const int64_t count = std::min<int64_t>(width, n - j);
      const V v = rounded(from + j, count);
      if (stride == 1) {
        count == width ? store(to + j, v) : store_some(to + j, v, count);
      } else {
        for (int64_t i = 0; i < count; ++i) store_some(to + (j + i) * stride, V{} + v[i], 1);
      }
    }
  }
};

// What depends on the type of numbers.
struct Arithmetic {
  int64_t size;  // of a number, in bytes
  void (*add_tile)(const void* numbers, const Tile& tile, double* sums);
  void (*write)(void* numbers, int64_t stride, const double* from, int64_t n);
};
template <class T>
constexpr Arithmetic arithmetic_of = {sizeof(T), Numbers<T>::add_tile, Numbers<T>::write};

constexpr Arithmetic arithmetic(Dtype dtype) {
  switch (dtype) {
    case Dtype::float16:
      return arithmetic_of<Half>;
    case Dtype::bfloat16:
      return arithmetic_of<BFloat16>;
    case Dtype::float32:
      return arithmetic_of<float>;
    default:
      return arithmetic_of<double>;
  }
}

// An output that is summed.
struct Output {
  Arithmetic of;
  int operand;
  std::byte* to;
  int64_t sums = 1;                // in all
  const int64_t* strides;          // of the loop
  int64_t within = 1;              // tiles that have a part in one sum, if they follow one another
  bool shared = false;             // have several tasks a part in one sum?
  double* accumulators = nullptr;  // null where each sum is of one tile; of each task, where they are shared

  void write(int64_t place, int64_t stride, const double* from, int64_t n) const {
    of.write(to + place * of.size, stride, from, n);
  }
};

// The sums of a tile, from zero on, to where they belong.
void give(const Output& output, const Tile& tile, int64_t offset, int64_t task, const double* sums) {
  Tile kept;
  for (int d = 0; d < tile.dims; ++d) {
    if (tile.strides[d] == 0) continue;
    kept.sizes[kept.dims] = tile.sizes[d];
    kept.strides[kept.dims++] = tile.strides[d];
  }
  const int runs = std::min(1, kept.dims);
  const int64_t n = runs ? kept.sizes[0] : 1, stride = runs ? kept.strides[0] : 1;
  kept.each(runs, n, [&](int64_t at, int64_t place) {
    if (output.accumulators == nullptr) return output.write(offset + at, stride, sums + place, n);
    double* to = output.accumulators + (output.shared ? task * output.sums : 0) + offset + at;
    for (int64_t i = 0; i < n; ++i) to[i * stride] += sums[place + i];
  });
}

// The loop in tiles: the dimensions below `split`, and `chunk` places of that one, in the order in which tasks take
// them.
struct Cut {
  int split = 0, outer = 0;
  int64_t box = 1, chunk = 1, tiles = 1;
  int order[most_dims];       // dimensions of the loop from `split` on, the fastest first
  int64_t counts[most_dims];  // of the steps of each
  int64_t of_task = 1, tasks = 1;

  Cut(const Loop& loop, const std::vector<Output>& outputs) {
    while (split < loop.dims && box * loop.sizes[split] <= most_of_tile) box *= loop.sizes[split++];
    if (split == loop.dims) return;
    const int64_t size = loop.sizes[split];
    const int64_t pieces = (size + most_of_tile / box - 1) / (most_of_tile / box);
    chunk = (size + pieces - 1) / pieces;
    const auto& largest = *std::max_element(outputs.begin(), outputs.end(),
                                            [](const Output& a, const Output& b) { return a.sums < b.sums; });
    for (const bool kept : {false, true}) {  // what is summed follows one another
      for (int d = split; d < loop.dims; ++d) {
        if ((largest.strides[d] != 0) == kept) order[outer++] = d;
      }
    }
    for (int i = 0; i < outer; ++i) {
      counts[i] = order[i] == split ? (size + chunk - 1) / chunk : loop.sizes[order[i]];
      tiles *= counts[i];
    }
  }

  // Divides the tiles among tasks.
  void divide(int64_t elements, std::vector<Output>& outputs) {
    const Output* largest = &outputs[0];
    for (Output& output : outputs) {
      int64_t product = 1;
      for (int i = 0; i < outer; ++i) {
        product *= counts[i];
        if (output.strides[order[i]] == 0) output.within = product;
      }
      if (output.sums > largest->sums) largest = &output;
    }
    int64_t wanted = std::clamp<int64_t>(elements / of_a_task, 1, most_tasks);
    while (true) {
      of_task = (tiles + wanted - 1) / wanted;
      const int64_t whole = largest->within;
      if (tiles / whole >= std::min<int64_t>(wanted, 8)) of_task = (of_task + whole - 1) / whole * whole;
      tasks = (tiles + of_task - 1) / of_task;
      int64_t accumulators = 0;
      for (Output& output : outputs) {
        output.shared = tasks > 1 && of_task % output.within != 0;
        if (output.shared) accumulators += tasks * output.sums;
      }
      if (accumulators * 4 <= elements || wanted == 1) return;
      wanted /= 2;
    }
  }
};

void run_task(const CpuKernel& kernel, const Loop& loop, const double* scalars, const Cut& cut,
              const std::vector<Output>& outputs, int64_t task) {
  const Arithmetic& of = outputs[0].of;
  const int64_t size = most_of_tile * of.size;
  const std::unique_ptr<std::byte[]> results(new std::byte[outputs.size() * size]);
  const int operands = kernel.outputs + kernel.inputs;
  std::vector<void*> data(loop.data, loop.data + operands);
  const Loop of_tile{loop.dims, loop.sizes, loop.strides, data.data()};
  std::vector<Tile> tiles(outputs.size());
  double sums[most_of_tile];
  int64_t known = -1;  // the tiles are of so many places
  const int64_t last = std::min(cut.tiles, (task + 1) * cut.of_task);
  for (int64_t index = task * cut.of_task; index < last; ++index) {
    int64_t position[most_dims];  // in the dimensions of the loop, from `split` on
    int64_t rest = index;
    for (int i = 0; i < cut.outer; ++i) {
      position[cut.order[i]] = rest % cut.counts[i];
      rest /= cut.counts[i];
    }
    int64_t count = 1, begin = 0, below = cut.box;
    for (int d = cut.split; d < loop.dims; ++d) {
      if (d == cut.split) {
        position[d] *= cut.chunk;
        count = std::min(cut.chunk, loop.sizes[d] - position[d]);
      }
      begin += position[d] * below;
      below *= loop.sizes[d];
    }
    const int64_t elements = cut.box * count;
    for (size_t k = 0; k < outputs.size(); ++k) {
      if (known != count) {
        tiles[k].dims = 0;
        tiles[k].sums = 1;
        for (int d = 0; d < cut.split; ++d) tiles[k].add(loop.sizes[d], outputs[k].strides[d]);
        if (cut.split < loop.dims) tiles[k].add(count, outputs[k].strides[cut.split]);
      }
      // A kernel writes element i of the loop at place i.
      const auto start = reinterpret_cast<uintptr_t>(results.get() + k * size);
      data[outputs[k].operand] = reinterpret_cast<void*>(start - begin * of.size);
    }
    known = count;
    compute(kernel, of_tile, scalars, begin, begin + elements);
    for (size_t k = 0; k < outputs.size(); ++k) {
      int64_t offset = 0;
      for (int d = cut.split; d < loop.dims; ++d) offset += position[d] * outputs[k].strides[d];
      std::fill_n(sums, tiles[k].sums, 0.0);
      of.add_tile(results.get() + k * size, tiles[k], sums);
      give(outputs[k], tiles[k], offset, task, sums);
    }
  }
}

// The accumulators of all tasks, added in their order.
void finish(const Output& output, int64_t tasks) {
  constexpr int64_t at_once = 512;
  for (int64_t j = 0; j < output.sums; j += at_once) {
    const int64_t n = std::min(at_once, output.sums - j);
    double* const first = output.accumulators + j;
    for (int64_t t = 1; t < tasks; ++t) {
      const double* other = first + t * output.sums;
      for (int64_t i = 0; i < n; ++i) first[i] += other[i];
    }
    output.write(j, 1, first, n);
  }
}

}  // namespace

void compute_sums(const CpuKernel& kernel, const Loop& loop, const double* scalars, ParallelFor parallel_for) {
  const Arithmetic of = arithmetic(kernel.dtype);
  std::vector<Output> outputs;
  for (int k = 0; k < kernel.outputs; ++k) {
    const int64_t* strides = loop.strides + k * most_dims;
    if (is_summed(loop.dims, loop.sizes, strides)) {
      outputs.push_back(
          {of, k, static_cast<std::byte*>(loop.data[k]), count_sums(loop.dims, loop.sizes, strides), strides});
    }
  }
  Cut cut(loop, outputs);
  cut.divide(loop.elements(), outputs);
  int64_t needed = 0;
  for (const Output& output : outputs) {
    if (output.within > 1) needed += output.sums * (output.shared ? cut.tasks : 1);
  }
  std::vector<double> accumulators(needed);
  needed = 0;
  for (Output& output : outputs) {
    if (output.within == 1) continue;
    output.accumulators = accumulators.data() + needed;
    needed += output.sums * (output.shared ? cut.tasks : 1);
  }
  parallel_for(cut.tasks, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) run_task(kernel, loop, scalars, cut, outputs, task);
  });
  for (const Output& output : outputs) {
    if (output.accumulators != nullptr) finish(output, output.shared ? cut.tasks : 1);
  }
}

}  // namespace torchad_ext
