// A manifest describes a file in chunks of one size: SHA-256 of each, those of
// zeros only marked, bound to the SHA-512 of the whole. A value.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/base/status.h"

namespace bim::store {

inline constexpr uint64_t kMinChunkSize = 256 * 1024;
inline constexpr uint32_t kMaxChunks = 65'536;
// For a file whose length nobody told: 4 MiB, so at most 256 GiB.
inline constexpr uint64_t kUnknownSizeChunk = 4 * 1024 * 1024;

// The chunk size for a file of `size` bytes: the smallest power of two that is
// at least 256 KiB and gives at most 65,536 chunks.
uint64_t ChunkSizeFor(uint64_t size);
// How many chunks of `chunk_size` a file of `size` bytes has.
uint32_t ChunkCount(uint64_t size, uint64_t chunk_size);

struct Chunk {
  bool zero = false;  // all bytes are zero; no digest then
  std::array<std::byte, 32> sha256{};
  friend bool operator==(const Chunk&, const Chunk&) = default;
};

// OK when the numbers fit together; DATA_LOSS says which do not.
base::Status CheckChunks(uint64_t size, uint64_t chunk_size, size_t count);

// The chunks as bytes: 33 each (0 or 1 for zero, then the digest).
std::string EncodeChunks(const std::vector<Chunk>& chunks);
// DATA_LOSS when the length is no multiple of 33 or a mark is neither 0 nor 1.
base::Result<std::vector<Chunk>> DecodeChunks(std::string_view bytes);

}  // namespace bim::store
