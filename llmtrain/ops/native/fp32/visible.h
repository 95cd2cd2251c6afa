// Which keys of a block the queries of a block attend to.
#pragma once

#include <algorithm>

#include "products.h"

namespace llmtrain::fp32 {

struct Visible {
  const int32_t* first;    // of each token the first that it attends to; null: token 0
  int64_t query, end;      // the block of queries, up to the end
  int64_t key, keys;       // the block of keys

  // The keys that a row sees.
  Depths of_row(int64_t row) const { return {low(row), std::clamp<int64_t>(query + row + 1 - key, 0, keys)}; }

  // The keys that any row of the tile from `row` on sees; what is not seen by all is to be zero.
  Depths of_tile(int64_t row) const {
    const int64_t last = std::min(query + row + kTileRows, end);
    return {low(row), std::clamp<int64_t>(last - key, 0, keys)};
  }

  // Whether a row of the tile from `row` on sees one of the keys of the tile from `column` on.
  bool in_tile(int64_t row, int64_t column) const {
    const Depths seen = of_tile(row);
    return seen.begin < column + kTileColumns && column < seen.end;
  }

  // The keys of all tiles, of rows as of columns, in which a product reads the row.
  Depths of_tiles_around(int64_t row) const {
    const Depths seen = of_row(row), tile = of_tile(row / kTileRows * kTileRows);
    return {std::min(tile.begin, std::max<int64_t>(0, seen.begin - kTileRows + 1)),
            std::min(kBlock, std::max(tile.end, seen.end + kTileRows - 1))};
  }

  // The queries that see any of the keys of the tile from `column` on, up to the block's end.
  // `ends` says of each key one past the last query that attends to it.
  Depths of_key_tile(int64_t column, const int32_t* ends) const {
    const int64_t last = ends[std::min(key + column + kTileRows, end) - 1];
    return {std::max<int64_t>(0, key + column - query), std::min(last, end) - query};
  }

 private:
  int64_t low(int64_t row) const {
    return first == nullptr ? 0 : std::clamp<int64_t>(first[query + row] - key, 0, keys);
  }
};

// Set what a row of probabilities does not see of `read` to zero.
inline void fill_unseen(float* row, Depths seen, Depths read) {
  if (seen.begin >= seen.end) seen = {read.end, read.end};
  if (read.begin < seen.begin) std::fill(row + read.begin, row + seen.begin, 0.f);
  if (seen.end < read.end) std::fill(row + seen.end, row + read.end, 0.f);
}

}  // namespace llmtrain::fp32
