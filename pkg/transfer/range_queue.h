// Which ranges of a file are still to be read, and who reads which: shared by
// the connections of one transfer.
//
// Ranges are given out from the front, so that bytes come nearly in order (the
// digest of the whole is computed in order). When none is left, the largest one
// that somebody reads is cut behind where its reader is, and the rest given
// out.
//
// Thread-safety: all functions from any thread.
#pragma once

#include <cstdint>
#include <list>
#include <mutex>
#include <optional>
#include <vector>

#include "pkg/io/sparse.h"

namespace bim::transfer {

class RangeQueue {
 public:
  // A range that one reader works on. Owned by the queue, valid until Return.
  struct Claim {
    uint64_t position = 0;
    uint64_t end = 0;
  };

  // `align`: ranges are cut at its multiples (counted from 0).
  explicit RangeQueue(uint64_t align) : align_(align) {}
  RangeQueue(const RangeQueue&) = delete;
  RangeQueue& operator=(const RangeQueue&) = delete;

  // Missing ranges, in order, not overlapping.
  void Add(const std::vector<io::Extent>& ranges);
  // The first range, at most about `max_bytes` of it (0: all of it). Null: all
  // is read or being read, and nothing can be cut off in pieces of at least
  // `min_cut` bytes on both sides. 0: do not cut.
  Claim* Take(uint64_t max_bytes, uint64_t min_cut);
  // The reader is about to give `count` bytes: how many of them may it? Moves
  // its position. Less than `count`: its range ends there.
  uint64_t Advance(Claim* claim, uint64_t count);
  // The reader came to its end and could go on: takes what follows there, at
  // most about `max_bytes`, if nobody has it. False: somebody does.
  bool Extend(Claim* claim, uint64_t max_bytes);
  // Its range as it is now; the end may have been cut.
  io::Extent RangeOf(const Claim* claim) const;
  // The reader is done, at `position`: what is left goes back to the front.
  void Return(Claim* claim, uint64_t position);
  // Nothing is left to give out, and nobody reads.
  bool done() const;
  // Bytes not yet given by anybody.
  uint64_t remaining() const;

 private:
  uint64_t AlignUp(uint64_t offset) const {
    return (offset + align_ - 1) / align_ * align_;
  }

  const uint64_t align_;
  mutable std::mutex mutex_;
  std::list<io::Extent> ranges_;  // in order
  std::list<Claim> claims_;
};

}  // namespace bim::transfer
