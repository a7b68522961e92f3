#include "pkg/io/sparse.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "pkg/io/dir.h"

namespace bim::io {
namespace {

std::string_view AsChars(std::span<const std::byte> data) {
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

// Aligned data directly, the rest (a file's tail) through the page cache.
base::Status Write(SparseFile& file, std::span<const std::byte> data,
                   uint64_t offset) {
  const bool aligned =
      offset % kZeroBlock == 0 &&
      reinterpret_cast<uintptr_t>(data.data()) % kZeroBlock == 0;
  while (file.direct_fd >= 0 && aligned && data.size() >= kZeroBlock) {
    const ssize_t count = ::pwrite(file.direct_fd, data.data(),
                                   data.size() / kZeroBlock * kZeroBlock,
                                   static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno != EINVAL) {
      return base::ErrnoError(errno, "cannot write image data");
    }
    // Not here, or not in pieces of this size.
    if (count < 0 || static_cast<size_t>(count) % kZeroBlock != 0) {
      file.direct_fd = -1;
      break;
    }
    data = data.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return PwriteAll(file.fd, AsChars(data), offset, "image data");
}

}  // namespace

bool IsZero(std::span<const std::byte> data) {
  if (data.empty()) return true;
  // The first 16 bytes by hand: random data ends the search there.
  const size_t head = std::min<size_t>(data.size(), 16);
  for (size_t i = 0; i < head; ++i) {
    if (data[i] != std::byte{0}) return false;
  }
  return std::memcmp(data.data(), data.data() + 1, data.size() - 1) == 0;
}

base::Status WriteSparse(SparseFile& file, std::span<const std::byte> data,
                         uint64_t offset, bool dirty) {
  size_t at = 0;
  while (at < data.size()) {
    // A run of blocks of one kind, blocks ending at multiples of 4 KiB.
    const auto block_end = [&](size_t from) {
      const size_t to_boundary = kZeroBlock - (offset + from) % kZeroBlock;
      return std::min(data.size(), from + to_boundary);
    };
    size_t end = block_end(at);
    // A partial block at the edges is data: its other part may be, too.
    const auto is_hole = [&](size_t from, size_t to) {
      return (to - from == kZeroBlock) && IsZero(data.subspan(from, to - from));
    };
    const bool hole = is_hole(at, end);
    while (end < data.size()) {
      const size_t next = block_end(end);
      if (is_hole(end, next) != hole) break;
      end = next;
    }
    const auto run = data.subspan(at, end - at);
    if (!hole) {
      BIM_RETURN_IF_ERROR(Write(file, run, offset + at));
    } else if (dirty) {
      BIM_RETURN_IF_ERROR(MakeHole(file.fd, offset + at, offset + end));
    }
    at = end;
  }
  return base::OkStatus();
}

base::Status MakeHole(int fd, uint64_t begin, uint64_t end) {
  if (begin >= end) return base::OkStatus();
  if (::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  static_cast<off_t>(begin),
                  static_cast<off_t>(end - begin)) == 0) {
    return base::OkStatus();
  }
  if (errno != EOPNOTSUPP && errno != ENOSYS) {
    return base::ErrnoError(errno, "cannot punch a hole");
  }
  const std::string zeros(
      static_cast<size_t>(std::min<uint64_t>(end - begin, 1 << 20)), '\0');
  for (uint64_t at = begin; at < end; at += zeros.size()) {
    BIM_RETURN_IF_ERROR(PwriteAll(
        fd, std::string_view(zeros).substr(0, static_cast<size_t>(end - at)),
        at, "zeros"));
  }
  return base::OkStatus();
}

base::Result<Extent> NextData(int fd, uint64_t offset, uint64_t size) {
  if (offset >= size) return Extent{size, size};
  const off_t begin = ::lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
  if (begin < 0) {
    if (errno == ENXIO) return Extent{size, size};
    if (errno == EINVAL) return Extent{offset, size};
    return base::ErrnoError(errno, "cannot seek for data");
  }
  if (static_cast<uint64_t>(begin) >= size) return Extent{size, size};
  const off_t end = ::lseek(fd, begin, SEEK_HOLE);
  if (end < 0) return base::ErrnoError(errno, "cannot seek for a hole");
  // A block that became a hole between the two calls is data as well: zeros.
  const uint64_t block = static_cast<uint64_t>(begin) + kZeroBlock;
  return Extent{static_cast<uint64_t>(begin),
                std::min(std::max(static_cast<uint64_t>(end), block), size)};
}

}  // namespace bim::io
