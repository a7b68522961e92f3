#include "pkg/transfer/range_queue.h"

#include <algorithm>

namespace bim::transfer {

void RangeQueue::Add(const std::vector<io::Extent>& ranges) {
  std::lock_guard lock(mutex_);
  for (const io::Extent& range : ranges) {
    if (range.begin < range.end) ranges_.push_back(range);
  }
}

RangeQueue::Claim* RangeQueue::Take(uint64_t max_bytes, uint64_t min_cut) {
  std::lock_guard lock(mutex_);
  if (ranges_.empty() && min_cut > 0) {
    Claim* largest = nullptr;
    for (Claim& claim : claims_) {
      if (largest == nullptr ||
          claim.end - claim.position > largest->end - largest->position) {
        largest = &claim;
      }
    }
    if (largest != nullptr &&
        (largest->end - largest->position) / 2 >= min_cut) {
      // Near its reader, so that what comes stays nearly in order.
      const uint64_t length = largest->end - largest->position;
      const uint64_t keep = std::clamp(max_bytes == 0 ? length / 2 : max_bytes,
                                       min_cut, std::max(min_cut, length / 2));
      uint64_t cut = AlignUp(largest->position + keep);
      if (cut + min_cut > largest->end) cut -= align_;
      if (cut >= largest->position + min_cut && cut + min_cut <= largest->end) {
        ranges_.push_back({cut, largest->end});
        largest->end = cut;
      }
    }
  }
  if (ranges_.empty()) return nullptr;
  io::Extent& front = ranges_.front();
  Claim claim{front.begin, front.end};
  if (max_bytes > 0 && claim.end - claim.position > max_bytes) {
    claim.end = std::min(claim.end, AlignUp(claim.position + max_bytes));
  }
  front.begin = claim.end;
  if (front.begin == front.end) ranges_.pop_front();
  claims_.push_back(claim);
  return &claims_.back();
}

uint64_t RangeQueue::Advance(Claim* claim, uint64_t count) {
  std::lock_guard lock(mutex_);
  count = std::min(count, claim->end - claim->position);
  claim->position += count;
  return count;
}

bool RangeQueue::Extend(Claim* claim, uint64_t max_bytes) {
  std::lock_guard lock(mutex_);
  for (auto range = ranges_.begin(); range != ranges_.end(); ++range) {
    if (range->begin != claim->end) continue;
    claim->end = std::min(range->end, AlignUp(range->begin + max_bytes));
    range->begin = claim->end;
    if (range->begin == range->end) ranges_.erase(range);
    return true;
  }
  return false;
}

io::Extent RangeQueue::RangeOf(const Claim* claim) const {
  std::lock_guard lock(mutex_);
  return {claim->position, claim->end};
}

void RangeQueue::Return(Claim* claim, uint64_t position) {
  std::lock_guard lock(mutex_);
  const io::Extent left{position, claim->end};
  claims_.remove_if([&](const Claim& other) { return &other == claim; });
  if (left.begin >= left.end) return;
  const auto next = std::find_if(
      ranges_.begin(), ranges_.end(),
      [&](const io::Extent& range) { return range.begin >= left.end; });
  if (next != ranges_.end() && next->begin == left.end) {
    next->begin = left.begin;
  } else {
    ranges_.insert(next, left);
  }
}

bool RangeQueue::done() const {
  std::lock_guard lock(mutex_);
  return ranges_.empty() && claims_.empty();
}

uint64_t RangeQueue::remaining() const {
  std::lock_guard lock(mutex_);
  uint64_t bytes = 0;
  for (const io::Extent& range : ranges_) bytes += range.end - range.begin;
  for (const Claim& claim : claims_) bytes += claim.end - claim.position;
  return bytes;
}

}  // namespace bim::transfer
