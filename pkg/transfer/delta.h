// Which chunks of a wanted image another image has, too: what is here already,
// or at a peer under another name, need not travel. By the digests of the
// manifests only; whether the bytes are still as the candidate's manifest says
// is for the caller to prove.
//
// Pure. Thread-safety: one call at a time per object.
// Memory: about 4 bytes for each wanted chunk, and during Match() 4 for each
// of the candidate's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pkg/store/record.h"

namespace bim::transfer {

// Chunk numbers: `wanted` of the wanted image has the bytes of `candidate` of
// the other one.
struct ChunkMatch {
  uint32_t wanted = 0;
  uint32_t candidate = 0;
  friend bool operator==(const ChunkMatch&, const ChunkMatch&) = default;
};

class ChunkIndex {
 public:
  // `wanted` has its chunks; it is borrowed and must not change. `missing`:
  // the chunks that are looked for, in any order; each must be below
  // wanted.chunks.size(). Zero chunks among them are left out: nobody needs to
  // send them.
  ChunkIndex(const store::ImageRecord& wanted,
             const std::vector<uint32_t>& missing);

  // The unmatched chunks that `candidate` has, ascending by `wanted`; from now
  // on they are matched. A chunk of the candidate may serve several. Nothing
  // when the candidate has no chunks, chunks of another size, or numbers that
  // do not fit together.
  std::vector<ChunkMatch> Match(const store::ImageRecord& candidate);

  // A match turned out bad: the chunk is looked for again. The same candidate
  // would match it again. Nothing when it is not matched.
  void Unmatch(uint32_t wanted);

  // Whether all are matched.
  bool complete() const { return unmatched_ == 0; }

 private:
  const store::ImageRecord& wanted_;
  std::vector<uint32_t> sorted_;  // by content, then by number
  std::vector<bool> matched_;     // at the place in sorted_
  size_t unmatched_ = 0;
};

}  // namespace bim::transfer
