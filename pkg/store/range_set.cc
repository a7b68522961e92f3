#include "pkg/store/range_set.h"

#include <algorithm>
#include <iterator>

namespace bim::store {

RangeSet::Ranges::const_iterator RangeSet::EndingBehind(uint64_t offset) const {
  auto range = ranges_.upper_bound(offset);
  if (range != ranges_.begin() && std::prev(range)->second > offset) --range;
  return range;
}

uint64_t RangeSet::Add(uint64_t begin, uint64_t end) {
  if (begin >= end) return 0;
  uint64_t added = end - begin;
  uint64_t joined_begin = begin;
  uint64_t joined_end = end;
  auto range = ranges_.upper_bound(begin);
  if (range != ranges_.begin() && std::prev(range)->second >= begin) --range;
  while (range != ranges_.end() && range->first <= end) {
    const uint64_t from = std::max(begin, range->first);
    const uint64_t to = std::min(end, range->second);
    added -= to - from;
    joined_begin = std::min(joined_begin, range->first);
    joined_end = std::max(joined_end, range->second);
    range = ranges_.erase(range);
  }
  ranges_.emplace_hint(range, joined_begin, joined_end);
  covered_ += added;
  return added;
}

uint64_t RangeSet::Remove(uint64_t begin, uint64_t end) {
  if (begin >= end) return 0;
  uint64_t removed = 0;
  for (auto range = EndingBehind(begin);
       range != ranges_.end() && range->first < end;) {
    const io::Extent old{range->first, range->second};
    removed += std::min(end, old.end) - std::max(begin, old.begin);
    range = ranges_.erase(range);
    if (old.begin < begin) ranges_.emplace(old.begin, begin);
    if (old.end > end) ranges_.emplace(end, old.end);
  }
  covered_ -= removed;
  return removed;
}

void RangeSet::Clear() {
  ranges_.clear();
  covered_ = 0;
}

bool RangeSet::Contains(uint64_t begin, uint64_t end) const {
  if (begin >= end) return true;
  const auto range = EndingBehind(begin);
  return range != ranges_.end() && range->first <= begin &&
         range->second >= end;
}

bool RangeSet::Overlaps(uint64_t begin, uint64_t end) const {
  if (begin >= end) return false;
  const auto range = EndingBehind(begin);
  return range != ranges_.end() && range->first < end;
}

bool RangeSet::Joins(uint64_t begin, uint64_t end) const {
  if (begin >= end) return true;
  const auto range = EndingBehind(begin == 0 ? 0 : begin - 1);
  return range != ranges_.end() && range->first <= end;
}

std::vector<io::Extent> RangeSet::Gaps(uint64_t begin, uint64_t end) const {
  std::vector<io::Extent> gaps;
  for (auto range = EndingBehind(begin); begin < end; ++range) {
    if (range == ranges_.end() || range->first >= end) {
      gaps.push_back({begin, end});
      break;
    }
    if (range->first > begin) gaps.push_back({begin, range->first});
    begin = range->second;
  }
  return gaps;
}

}  // namespace bim::store
