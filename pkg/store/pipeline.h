// The stages behind an ingest: its insides, nobody else includes it.
//
//   writers --items--> write stage --> file, chunk table, journal
//       \--items in order--> hash stage (SHA-512 of the whole)
//                                 ^-- reads back what came out of order
//
// Three threads: write, hash, and sync (makes durable what was written, now and
// then). An item that continues where the hash stage is goes to it from memory;
// the others are written through the page cache and read back from there when
// their turn comes. At most `max_blocks` blocks of 1 MiB are in use.
//
// Thread-safety: all functions from any thread, except where said.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "pkg/base/digest.h"
#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/hash/hasher.h"
#include "pkg/io/sparse.h"
#include "pkg/store/manifest.h"

namespace bim::store {

inline constexpr size_t kBlockSize = 1 << 20;

// One aligned megabyte of the file: the byte at `offset` lies at offset modulo
// kBlockSize, so that what is aligned in the file is aligned in memory. Memory
// straight from the kernel, so that it goes back there at once.
class Block {
 public:
  Block();
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  std::byte* At(uint64_t offset) { return data_ + offset % kBlockSize; }

 private:
  std::byte* data_;
};

struct DoneChunk {
  uint32_t index = 0;
  Chunk chunk;
};

// A piece of the file on its way: the bytes of a block, or (without one) zeros
// where the file has a hole already.
struct Item {
  uint64_t offset = 0;
  uint64_t length = 0;
  std::shared_ptr<Block> block;
  // The range may hold other bytes: make it a hole. No bytes are given then.
  bool punch = false;
  uint64_t dropped = 0;  // so many bytes of it counted as stored
  // Its bytes are what the file shall hold; else only `ready` tells when.
  bool proven = true;
  // Chunks that this item completes, and the range proven by them when not
  // every item of it was.
  std::vector<DoneChunk> done;
  io::Extent ready;

  std::span<const std::byte> Bytes() const {
    return {block->At(offset), length};
  }
};

class Pipeline {
 public:
  struct Options {
    bool sha512 = true;  // hash the whole
    bool sha256 = false;
    std::string path;  // of the temp file, for messages
  };
  explicit Pipeline(Options options) : options_(std::move(options)) {}
  ~Pipeline() { Stop(); }
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  // Begins with an empty file of `chunks` chunks of `chunk_size` (0: grows as
  // they come). Not while running. The descriptors are borrowed until Stop();
  // direct_fd may be -1, journal_fd too (nothing is journaled then).
  void Start(io::SparseFile file, int journal_fd, uint64_t chunk_size,
             size_t chunks);
  void SetJournal(int journal_fd);
  // Ends the threads; what is queued is still done, unless it failed.
  void Stop();
  // Waits as AwaitWritten does, and ends the threads until Wake(). No writer
  // may be at work.
  base::Status Rest();
  void Wake();

  // A block to fill. Waits for a free one. CANCELLED when stopped; the failure
  // of a stage, if one failed.
  base::Result<std::shared_ptr<Block>> TakeBlock(std::stop_token stop);
  void DropBlock(std::shared_ptr<Block> block);
  // Errors as TakeBlock's; then the item was not taken.
  base::Status Push(Item item, std::stop_token stop);
  // For items that come a little out of order, from several threads: returns
  // when what comes before `offset` is on its way to the hash stage, so that it
  // need not be read back; or soon, if it does not come.
  void AwaitTurn(uint64_t offset);
  // More writers need more blocks.
  void AddWriter(int count);

  // Chunks that are in the file already (restored, cloned, known zeros).
  // `journal`: an entry is written for each. `counted`: so many bytes of it
  // counted as stored already.
  base::Status Have(uint32_t index, const Chunk& chunk, uint64_t begin,
                    uint64_t end, bool journal, uint64_t counted = 0);
  // The same, journaled, for `count` chunks of zeros that counted already.
  base::Status HaveZeros(uint32_t first, uint32_t count, uint64_t begin,
                         uint64_t end);
  bool HasChunk(uint32_t index) const;
  // So many bytes more are in the file.
  void Count(uint64_t bytes) { stored_ += bytes; }
  // So many bytes that are in the file are of no use.
  void Forget(uint64_t bytes) { stored_ -= bytes; }

  void Fail(base::Status status);
  base::Status failure() const;
  // Everything pushed before is in the file.
  base::Status AwaitWritten();
  // No sync runs, and no further one begins before Stop().
  void EndSync();
  // All of [0, size) is hashed. CANCELLED when stopped.
  base::Status AwaitHashed(uint64_t size, std::stop_token stop);
  // Makes durable what was written and journaled. Not while running.
  base::Status SyncNow();

  // Bytes that are in the file.
  uint64_t stored_bytes() const { return stored_.load(); }
  // Only when stopped or awaited.
  std::vector<Chunk> TakeChunks() { return std::move(chunks_); }
  void AddChunk(const DoneChunk& done);
  base::Digest FinishSha512() { return sha512_->Finish(); }
  std::optional<base::Digest> FinishSha256();

 private:
  void StartThreads();  // locked
  void JoinThreads();
  // The threads are to end, now or when nothing is queued. Locked.
  bool Leaving() const { return stopping_ || resting_; }
  void RunWrite();
  void RunHash();
  void RunSync();
  base::Status WriteItem(const Item& item, bool handed);
  base::Status HashItem(const Item& item);
  base::Status HashFromFile(uint64_t begin, uint64_t end);
  // `mark` the chunk, with the lock held.
  void Mark(const DoneChunk& done);
  base::Status Journal(const std::string& entries);
  // The range is proven and in the file, but was not hashed. Locked.
  void AddAhead(uint64_t begin, uint64_t end);
  void Release(std::shared_ptr<Block> block);  // locked

  struct Queued {
    Item item;
    bool handed = false;  // to the hash stage, from memory
  };

  const Options options_;
  io::SparseFile file_;
  std::atomic<int> journal_fd_{-1};
  uint64_t chunk_size_ = 0;
  std::atomic<uint64_t> stored_{0};

  // Of the hash stage.
  std::optional<hash::Hasher> sha512_;
  std::optional<hash::Hasher> sha256_;
  std::shared_ptr<Block> read_back_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Chunk> chunks_;
  std::vector<bool> have_;
  std::deque<Queued> to_write_;
  std::deque<Item> to_hash_;  // contiguous, up to hash_next_
  uint64_t hash_next_ = 0;    // the next byte that nobody has for hashing
  uint64_t hashed_ = 0;       // bytes
  bool patient_ = true;       // turns have come of late
  std::map<uint64_t, uint64_t> ahead_;  // begin -> end, proven, not hashed
  uint64_t pushed_ = 0;                 // items
  uint64_t written_ = 0;
  size_t blocks_ = 0;  // in use
  size_t max_blocks_ = 0;
  int writers_ = 0;
  std::vector<std::shared_ptr<Block>> free_blocks_;
  uint64_t unsynced_bytes_ = 0;
  bool sync_running_ = false;
  bool sync_ended_ = false;
  bool stopping_ = false;
  bool resting_ = false;
  base::Status failure_;
  std::vector<std::thread> threads_;
};

}  // namespace bim::store
