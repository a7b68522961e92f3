#include "pkg/transfer/wire.h"

#include <algorithm>
#include <cstring>

namespace bim::transfer {
namespace {

using base::DataLossError;
using base::Result;
using base::Status;

constexpr char kMagic[] = "BIMEXT01";
constexpr size_t kHeadBytes = 8 + 3 * 8;

void PutNumber(std::string& out, uint64_t number) {
  for (int i = 0; i < 8; ++i) {
    out.push_back(static_cast<char>(number >> (8 * i) & 0xff));
  }
}

uint64_t GetNumber(const std::byte* at) {
  uint64_t number = 0;
  for (int i = 7; i >= 0; --i) {
    number = number << 8 | std::to_integer<uint64_t>(at[i]);
  }
  return number;
}

}  // namespace

Result<ExtentTable> MapExtents(int fd, uint64_t begin, uint64_t end) {
  ExtentTable table{begin, end, {}};
  for (uint64_t at = begin; at < end;) {
    BIM_ASSIGN_OR_RETURN(io::Extent data, io::NextData(fd, at, end));
    if (data.begin >= end) break;
    at = data.end;
    if (table.data.size() == kMaxExtents) {
      table.data.back().end = data.end;
    } else {
      table.data.push_back(data);
    }
  }
  return table;
}

std::string EncodeExtentTable(const ExtentTable& table) {
  std::string out(kMagic, 8);
  PutNumber(out, table.begin);
  PutNumber(out, table.end);
  PutNumber(out, table.data.size());
  for (const io::Extent& extent : table.data) {
    PutNumber(out, extent.begin);
    PutNumber(out, extent.end);
  }
  return out;
}

Status ExtentReader::ParseTable() {
  const uint64_t count = GetNumber(head_.data() + 24);
  std::vector<io::Extent> table;
  table.reserve(count);
  uint64_t last = begin_;
  for (uint64_t i = 0; i < count; ++i) {
    const std::byte* at = head_.data() + kHeadBytes + i * 16;
    const io::Extent extent{GetNumber(at), GetNumber(at + 8)};
    if (extent.begin < last || extent.end <= extent.begin ||
        extent.end > end_) {
      return DataLossError("the answer's table of extents is not in order");
    }
    last = extent.end;
    table.push_back(extent);
  }
  table_ = std::move(table);
  head_.clear();
  head_.shrink_to_fit();
  at_ = begin_;
  return base::OkStatus();
}

Status ExtentReader::Feed(
    std::span<const std::byte> body,
    const std::function<Status(std::span<const std::byte>)>& on_data,
    const std::function<Status(uint64_t)>& on_zeros) {
  while (!table_) {
    size_t want = kHeadBytes;
    if (head_.size() >= kHeadBytes) {
      want += static_cast<size_t>(GetNumber(head_.data() + 24)) * 16;
    }
    const size_t take = std::min(body.size(), want - head_.size());
    const auto part = body.first(take);
    head_.insert(head_.end(), part.begin(), part.end());
    body = body.subspan(take);
    if (head_.size() < want) return base::OkStatus();
    if (want == kHeadBytes) {
      if (std::memcmp(head_.data(), kMagic, 8) != 0) {
        return DataLossError("the answer is no list of extents");
      }
      if (GetNumber(head_.data() + 8) != begin_ ||
          GetNumber(head_.data() + 16) != end_) {
        return DataLossError("the answer is of another part of the file");
      }
      const uint64_t count = GetNumber(head_.data() + 24);
      if (count > kMaxExtents) {
        return DataLossError("the answer has " + std::to_string(count) +
                             " extents, at most " +
                             std::to_string(kMaxExtents) + " are expected");
      }
      if (count > 0) continue;
    }
    BIM_RETURN_IF_ERROR(ParseTable());
  }
  while (!body.empty()) {
    if (next_ == table_->size()) {
      return DataLossError("the answer is longer than its extents");
    }
    const io::Extent& extent = (*table_)[next_];
    if (at_ < extent.begin) {
      BIM_RETURN_IF_ERROR(on_zeros(extent.begin - at_));
      at_ = extent.begin;
    }
    const size_t take =
        static_cast<size_t>(std::min<uint64_t>(body.size(), extent.end - at_));
    BIM_RETURN_IF_ERROR(on_data(body.first(take)));
    at_ += take;
    body = body.subspan(take);
    if (at_ == extent.end) ++next_;
  }
  return base::OkStatus();
}

Status ExtentReader::Finish(const std::function<Status(uint64_t)>& on_zeros) {
  if (!table_ || next_ < table_->size()) {
    return DataLossError("the answer ended early");
  }
  if (at_ < end_) {
    BIM_RETURN_IF_ERROR(on_zeros(end_ - at_));
    at_ = end_;
  }
  return base::OkStatus();
}

}  // namespace bim::transfer
