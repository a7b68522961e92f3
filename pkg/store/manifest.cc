#include "pkg/store/manifest.h"

#include <bit>
#include <cstring>

namespace bim::store {

using base::DataLossError;

uint64_t ChunkSizeFor(uint64_t size) {
  uint64_t chunk = kMinChunkSize;
  while (size / chunk + (size % chunk != 0 ? 1 : 0) > kMaxChunks) chunk *= 2;
  return chunk;
}

uint32_t ChunkCount(uint64_t size, uint64_t chunk_size) {
  return static_cast<uint32_t>(size / chunk_size +
                               (size % chunk_size != 0 ? 1 : 0));
}

base::Status CheckChunks(uint64_t size, uint64_t chunk_size, size_t chunks) {
  if (!std::has_single_bit(chunk_size) || chunk_size < kMinChunkSize) {
    return DataLossError("the manifest's chunk size " +
                         std::to_string(chunk_size) +
                         " is no power of two of at least 256 KiB");
  }
  const uint64_t count = size / chunk_size + (size % chunk_size != 0 ? 1 : 0);
  if (count > kMaxChunks || count != chunks) {
    return DataLossError("the manifest has " + std::to_string(chunks) +
                         " chunks, a file of " + std::to_string(size) +
                         " bytes has " + std::to_string(count));
  }
  return base::OkStatus();
}

std::string EncodeChunks(const std::vector<Chunk>& chunks) {
  std::string out;
  out.reserve(chunks.size() * 33);
  for (const Chunk& chunk : chunks) {
    out.push_back(chunk.zero ? 1 : 0);
    out.append(reinterpret_cast<const char*>(chunk.sha256.data()),
               chunk.sha256.size());
  }
  return out;
}

base::Result<std::vector<Chunk>> DecodeChunks(std::string_view bytes) {
  if (bytes.size() % 33 != 0) {
    return DataLossError("the chunk table is cut off");
  }
  std::vector<Chunk> chunks(bytes.size() / 33);
  for (size_t i = 0; i < chunks.size(); ++i) {
    const char* at = bytes.data() + i * 33;
    if (at[0] != 0 && at[0] != 1) {
      return DataLossError("the chunk table is damaged at entry " +
                           std::to_string(i));
    }
    chunks[i].zero = at[0] == 1;
    std::memcpy(chunks[i].sha256.data(), at + 1, 32);
  }
  return chunks;
}

}  // namespace bim::store
