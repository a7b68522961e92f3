// A set of bytes of a file, kept as ranges that neither overlap nor touch.
//
// Thread-safety: a value, as safe as a std::map. Each call costs the logarithm
// of the number of pieces, and those pieces that it joins, removes or returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "pkg/io/sparse.h"

namespace bim::store {

// In all of these begin <= end; an empty range has no bytes.
class RangeSet {
 public:
  // Adds [begin, end); how many of its bytes were not there before.
  uint64_t Add(uint64_t begin, uint64_t end);
  // Removes [begin, end); how many of its bytes were there.
  uint64_t Remove(uint64_t begin, uint64_t end);
  void Clear();

  // All bytes of [begin, end) are there.
  bool Contains(uint64_t begin, uint64_t end) const;
  // A byte of [begin, end) is there.
  bool Overlaps(uint64_t begin, uint64_t end) const;
  // A byte of [begin, end) is there, or the one before or behind it: to add it
  // makes no further piece.
  bool Joins(uint64_t begin, uint64_t end) const;
  // What of [begin, end) is not there, in order.
  std::vector<io::Extent> Gaps(uint64_t begin, uint64_t end) const;

  uint64_t covered() const { return covered_; }  // bytes
  size_t pieces() const { return ranges_.size(); }

 private:
  using Ranges = std::map<uint64_t, uint64_t>;  // begin -> end
  // The first range that ends behind `offset`.
  Ranges::const_iterator EndingBehind(uint64_t offset) const;

  Ranges ranges_;
  uint64_t covered_ = 0;
};

}  // namespace bim::store
