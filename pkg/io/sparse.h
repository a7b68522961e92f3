// Zeros become holes: writing data so that runs of zeros use no space, and
// walking the data of a sparse file. All functions block and may be called
// from any thread (one writer for one range at a time).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "pkg/base/status.h"

namespace bim::io {

// Blocks of this size that are all zero are not written.
inline constexpr size_t kZeroBlock = 4096;

bool IsZero(std::span<const std::byte> data);

// Where WriteSparse writes. Descriptors are borrowed.
struct SparseFile {
  int fd = -1;
  // The same file opened with O_DIRECT, or -1. What is aligned to 4 KiB (in
  // the file and in memory) goes this way: past the page cache, which costs a
  // fraction of the CPU and leaves the cache to the virtual machines. Set to
  // -1 when the file system turns out not to take it.
  int direct_fd = -1;
};

// Writes `data` at `offset`; aligned 4 KiB blocks of zeros are left out. With
// `dirty` the range may hold other bytes, so those are punched out (or written
// where the file system can't punch); else it must be a hole already.
base::Status WriteSparse(SparseFile& file, std::span<const std::byte> data,
                         uint64_t offset, bool dirty);

// Makes [begin, end) of a file, which may hold other bytes, read as zeros: a
// hole where the file system can, written zeros where not.
base::Status MakeHole(int fd, uint64_t begin, uint64_t end);

// The next range that may hold data at or after `offset`, [begin, end); an
// empty range at `size` when only a hole follows. Where the file system cannot
// tell, all of the file is data.
struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
};
base::Result<Extent> NextData(int fd, uint64_t offset, uint64_t size);

}  // namespace bim::io
