#include "pkg/transfer/delta.h"

#include <algorithm>
#include <cstring>

#include "pkg/base/status.h"

namespace bim::transfer {
namespace {

using store::ImageRecord;

// Bytes of a chunk; only a file's last one may be shorter.
uint64_t LengthOf(const ImageRecord& image, uint32_t chunk) {
  return std::min(image.chunk_size,
                  image.stamp.size - uint64_t{chunk} * image.chunk_size);
}

// <0, 0, >0: orders chunks, of one image or two, by digest and length.
int CompareContent(const ImageRecord& a, uint32_t i, const ImageRecord& b,
                   uint32_t j) {
  const auto& left = a.chunks[i].sha256;
  const auto& right = b.chunks[j].sha256;
  if (const int order = std::memcmp(left.data(), right.data(), left.size())) {
    return order;
  }
  const uint64_t length = LengthOf(a, i), other = LengthOf(b, j);
  return length < other ? -1 : length > other ? 1 : 0;
}

struct ByContent {
  const ImageRecord& image;
  bool operator()(uint32_t i, uint32_t j) const {
    const int order = CompareContent(image, i, image, j);
    return order != 0 ? order < 0 : i < j;
  }
};

}  // namespace

ChunkIndex::ChunkIndex(const ImageRecord& wanted,
                       const std::vector<uint32_t>& missing)
    : wanted_(wanted) {
  sorted_.reserve(missing.size());
  for (const uint32_t chunk : missing) {
    BIM_CHECK(chunk < wanted.chunks.size());
    if (!wanted.chunks[chunk].zero) sorted_.push_back(chunk);
  }
  std::sort(sorted_.begin(), sorted_.end(), ByContent{wanted});
  sorted_.erase(std::unique(sorted_.begin(), sorted_.end()), sorted_.end());
  matched_.assign(sorted_.size(), false);
  unmatched_ = sorted_.size();
}

std::vector<ChunkMatch> ChunkIndex::Match(const ImageRecord& candidate) {
  std::vector<ChunkMatch> found;
  if (unmatched_ == 0 || candidate.chunk_size != wanted_.chunk_size ||
      !store::CheckChunks(candidate.stamp.size, candidate.chunk_size,
                          candidate.chunks.size())
           .ok()) {
    return found;
  }
  std::vector<uint32_t> has;
  has.reserve(candidate.chunks.size());
  for (uint32_t chunk = 0; chunk < candidate.chunks.size(); ++chunk) {
    if (!candidate.chunks[chunk].zero) has.push_back(chunk);
  }
  std::sort(has.begin(), has.end(), ByContent{candidate});

  // Both are sorted: one walk through both, however often a content repeats.
  auto next = has.begin();
  for (size_t at = 0; at < sorted_.size(); ++at) {
    if (matched_[at]) continue;
    while (next != has.end() &&
           CompareContent(candidate, *next, wanted_, sorted_[at]) < 0) {
      ++next;
    }
    if (next == has.end()) break;
    if (CompareContent(candidate, *next, wanted_, sorted_[at]) > 0) continue;
    found.push_back({sorted_[at], *next});
    matched_[at] = true;
    --unmatched_;
  }
  std::sort(found.begin(), found.end(),
            [](const ChunkMatch& a, const ChunkMatch& b) {
              return a.wanted < b.wanted;
            });
  return found;
}

void ChunkIndex::Unmatch(uint32_t wanted) {
  if (wanted >= wanted_.chunks.size()) return;
  const auto at = std::lower_bound(sorted_.begin(), sorted_.end(), wanted,
                                   ByContent{wanted_});
  if (at == sorted_.end() || *at != wanted) return;
  const size_t place = static_cast<size_t>(at - sorted_.begin());
  if (!matched_[place]) return;
  matched_[place] = false;
  ++unmatched_;
}

}  // namespace bim::transfer
