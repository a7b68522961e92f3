#include "pkg/store/pipeline.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <utility>

#include "pkg/base/failpoint.h"
#include "pkg/io/dir.h"
#include "pkg/store/record.h"

namespace bim::store {
namespace {

using base::Digest;
using base::DigestAlgorithm;
using base::Result;
using base::Status;

// Blocks in use: these, and one for each writer.
constexpr size_t kBaseBlocks = 5;
constexpr size_t kMaxQueuedItems = 16;
// How much data may be lost to a power failure: made durable when this much is
// new, or after this long.
constexpr uint64_t kSyncBytes = 32 << 20;
constexpr std::chrono::seconds kSyncInterval{2};
// What the hash stage takes at once of what is read back.
constexpr uint64_t kReadBack = 16 << 20;
// How long a turn is awaited.
constexpr std::chrono::milliseconds kTurn{100};

}  // namespace

Block::Block() {
  void* data = ::mmap(nullptr, kBlockSize, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  BIM_CHECK(data != MAP_FAILED);
  data_ = static_cast<std::byte*>(data);
}

Block::~Block() { ::munmap(data_, kBlockSize); }

void Pipeline::Start(io::SparseFile file, int journal_fd, uint64_t chunk_size,
                     size_t chunks) {
  BIM_CHECK(threads_.empty());
  {
    std::lock_guard lock(mutex_);
    file_ = file;
    journal_fd_ = journal_fd;
    chunk_size_ = chunk_size;
    stored_ = 0;
    chunks_.assign(chunks, Chunk());
    have_.assign(chunks, false);
    to_write_.clear();
    to_hash_.clear();
    hash_next_ = hashed_ = 0;
    patient_ = true;
    ahead_.clear();
    pushed_ = written_ = 0;
    max_blocks_ = kBaseBlocks + static_cast<size_t>(writers_);
    unsynced_bytes_ = 0;
    sync_running_ = sync_ended_ = stopping_ = resting_ = false;
    failure_ = base::OkStatus();
  }
  if (options_.sha512) {
    sha512_.emplace(DigestAlgorithm::kSha512);
    if (options_.sha256) sha256_.emplace(DigestAlgorithm::kSha256);
  }
  std::lock_guard lock(mutex_);
  StartThreads();
}

void Pipeline::StartThreads() {
  const auto start = [this](const char* name, void (Pipeline::*run)()) {
    threads_.emplace_back([this, name, run] {
      pthread_setname_np(pthread_self(), name);
      (this->*run)();
    });
  };
  start("bim-write", &Pipeline::RunWrite);
  if (options_.sha512) start("bim-hash", &Pipeline::RunHash);
  start("bim-sync", &Pipeline::RunSync);
}

void Pipeline::SetJournal(int journal_fd) { journal_fd_ = journal_fd; }

void Pipeline::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  JoinThreads();
}

void Pipeline::JoinThreads() {
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  read_back_.reset();
}

Status Pipeline::Rest() {
  BIM_RETURN_IF_ERROR(AwaitWritten());
  {
    std::lock_guard lock(mutex_);
    if (resting_ || stopping_) return failure_;
    resting_ = true;
    changed_.notify_all();
  }
  JoinThreads();
  std::lock_guard lock(mutex_);
  free_blocks_.clear();
  return failure_;
}

void Pipeline::Wake() {
  std::lock_guard lock(mutex_);
  if (!resting_ || stopping_) return;
  resting_ = false;
  StartThreads();
}

void Pipeline::Fail(Status status) {
  std::lock_guard lock(mutex_);
  if (failure_.ok()) failure_ = std::move(status);
  changed_.notify_all();
}

Status Pipeline::failure() const {
  std::lock_guard lock(mutex_);
  return failure_;
}

void Pipeline::AddWriter(int count) {
  std::lock_guard lock(mutex_);
  writers_ += count;
  max_blocks_ = kBaseBlocks + static_cast<size_t>(writers_);
  changed_.notify_all();
}

Result<std::shared_ptr<Block>> Pipeline::TakeBlock(std::stop_token stop) {
  std::stop_callback wake(stop, [this] {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return !failure_.ok() || stop.stop_requested() || blocks_ < max_blocks_;
  });
  if (!failure_.ok()) return failure_;
  if (stop.stop_requested()) return base::CancelledError("stopped");
  ++blocks_;
  if (free_blocks_.empty()) return std::make_shared<Block>();
  std::shared_ptr<Block> block = std::move(free_blocks_.back());
  free_blocks_.pop_back();
  return block;
}

void Pipeline::DropBlock(std::shared_ptr<Block> block) {
  std::lock_guard lock(mutex_);
  Release(std::move(block));
  changed_.notify_all();
}

void Pipeline::Release(std::shared_ptr<Block> block) {
  if (!block || block.use_count() > 1) return;
  free_blocks_.push_back(std::move(block));
  --blocks_;
}

void Pipeline::AwaitTurn(uint64_t offset) {
  std::unique_lock lock(mutex_);
  if (!options_.sha512 || !patient_) return;
  // One that was in vain is enough, until something is in order again.
  if (!changed_.wait_for(lock, kTurn, [&] {
        return hash_next_ >= offset || !failure_.ok() || !patient_;
      })) {
    patient_ = false;
  }
}

Status Pipeline::Push(Item item, std::stop_token stop) {
  std::stop_callback wake(stop, [this] {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return !failure_.ok() || stop.stop_requested() ||
           (to_write_.size() < kMaxQueuedItems &&
            to_hash_.size() < kMaxQueuedItems);
  });
  if (!failure_.ok()) return failure_;
  if (stop.stop_requested()) return base::CancelledError("stopped");
  ++pushed_;
  Queued queued;
  if (options_.sha512 && item.proven && !item.punch && item.length > 0 &&
      item.offset == hash_next_) {
    queued.handed = true;
    patient_ = true;
    hash_next_ += item.length;
    Item copy;
    copy.offset = item.offset;
    copy.length = item.length;
    copy.block = item.block;
    to_hash_.push_back(std::move(copy));
  }
  queued.item = std::move(item);
  to_write_.push_back(std::move(queued));
  changed_.notify_all();
  return base::OkStatus();
}

void Pipeline::RunWrite() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return Leaving() || !to_write_.empty(); });
    if (to_write_.empty()) return;
    Queued queued = std::move(to_write_.front());
    to_write_.pop_front();
    const bool skip = !failure_.ok();
    lock.unlock();
    Status status;
    if (!skip) status = WriteItem(queued.item, queued.handed);
    lock.lock();
    if (!status.ok() && failure_.ok()) failure_ = std::move(status);
    ++written_;
    Release(std::move(queued.item.block));
    changed_.notify_all();
  }
}

Status Pipeline::WriteItem(const Item& item, bool handed) {
  BIM_FAILPOINT_ERROR("store.ingest.write");
  Status written;
  if (item.punch) {
    written = io::MakeHole(file_.fd, item.offset, item.offset + item.length);
  } else if (item.block && item.length > 0) {
    // What will be read back soon stays in the page cache.
    if (handed || !options_.sha512) {
      written = io::WriteSparse(file_, item.Bytes(), item.offset, false);
    } else {
      io::SparseFile cached{file_.fd, -1};
      written = io::WriteSparse(cached, item.Bytes(), item.offset, false);
    }
  }
  if (!written.ok()) return written.WithContext(options_.path);
  if (item.punch) {
    Forget(item.dropped);
    return base::OkStatus();
  }
  stored_ += item.length;
  std::string entries;
  {
    std::lock_guard lock(mutex_);
    for (const DoneChunk& done : item.done) {
      Mark(done);
      entries += EncodeJournalEntry(done.index, done.chunk);
      if (!done.chunk.zero) unsynced_bytes_ += chunk_size_;
    }
    if (options_.sha512) {
      if (item.proven && !handed) {
        AddAhead(item.offset, item.offset + item.length);
      }
      if (item.ready.begin < item.ready.end) {
        AddAhead(item.ready.begin, item.ready.end);
      }
    }
    if (unsynced_bytes_ >= kSyncBytes) changed_.notify_all();
  }
  return Journal(entries);
}

void Pipeline::Mark(const DoneChunk& done) {
  if (chunks_.size() <= done.index) {
    chunks_.resize(done.index + 1);
    have_.resize(done.index + 1);
  }
  chunks_[done.index] = done.chunk;
  have_[done.index] = true;
}

void Pipeline::AddChunk(const DoneChunk& done) {
  std::lock_guard lock(mutex_);
  Mark(done);
}

// Entries may be on the disk before their data is: a restore reads the data and
// compares.
Status Pipeline::Journal(const std::string& entries) {
  const int fd = journal_fd_;
  if (fd < 0 || entries.empty()) return base::OkStatus();
  for (size_t done = 0; done < entries.size();) {  // O_APPEND
    const ssize_t count =
        ::write(fd, entries.data() + done, entries.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return base::ErrnoError(errno,
                              "cannot write the journal of " + options_.path);
    }
    done += static_cast<size_t>(count);
  }
  BIM_FAILPOINT_ERROR("store.journal.appended");
  return base::OkStatus();
}

Status Pipeline::Have(uint32_t index, const Chunk& chunk, uint64_t begin,
                      uint64_t end, bool journal, uint64_t counted) {
  {
    std::lock_guard lock(mutex_);
    Mark({index, chunk});
    stored_ += end - begin - counted;
    if (options_.sha512) AddAhead(begin, end);
    // Zeros are on the disk when they were never there.
    if (journal && !chunk.zero) unsynced_bytes_ += end - begin;
    changed_.notify_all();
  }
  return journal ? Journal(EncodeJournalEntry(index, chunk)) : base::OkStatus();
}

Status Pipeline::HaveZeros(uint32_t first, uint32_t count, uint64_t begin,
                           uint64_t end) {
  Chunk zero;
  zero.zero = true;
  std::string entries;
  {
    std::lock_guard lock(mutex_);
    for (uint32_t index = first; index < first + count; ++index) {
      Mark({index, zero});
      entries += EncodeJournalEntry(index, zero);
    }
    if (options_.sha512) AddAhead(begin, end);
    changed_.notify_all();
  }
  return Journal(entries);
}

bool Pipeline::HasChunk(uint32_t index) const {
  std::lock_guard lock(mutex_);
  return index < have_.size() && have_[index];
}

void Pipeline::AddAhead(uint64_t begin, uint64_t end) {
  auto next = ahead_.lower_bound(begin);
  if (next != ahead_.begin() && std::prev(next)->second == begin) {
    --next;
    next->second = end;
  } else {
    next = ahead_.emplace_hint(next, begin, end);
  }
  const auto after = std::next(next);
  if (after != ahead_.end() && after->first == next->second) {
    next->second = after->second;
    ahead_.erase(after);
  }
}

void Pipeline::RunHash() {
  std::unique_lock lock(mutex_);
  while (true) {
    const auto is_ahead = [&] {
      return !ahead_.empty() && ahead_.begin()->first == hash_next_;
    };
    changed_.wait(lock,
                  [&] { return Leaving() || !to_hash_.empty() || is_ahead(); });
    Status status;
    if (!to_hash_.empty()) {
      Item item = std::move(to_hash_.front());
      to_hash_.pop_front();
      const bool skip = !failure_.ok();
      lock.unlock();
      if (!skip) status = HashItem(item);
      lock.lock();
      hashed_ += item.length;
      Release(std::move(item.block));
    } else if (Leaving() || !failure_.ok()) {
      if (Leaving()) return;
      // Nothing to do until it is stopped or started over.
      changed_.wait(lock, [&] { return Leaving() || !to_hash_.empty(); });
      continue;
    } else {
      const auto first = ahead_.begin();
      const uint64_t begin = first->first;
      const uint64_t all = first->second;
      const uint64_t end = std::min(all, begin + kReadBack);
      ahead_.erase(first);
      if (end < all) ahead_.emplace(end, all);
      hash_next_ = end;
      changed_.notify_all();
      lock.unlock();
      status = HashFromFile(begin, end);
      lock.lock();
      hashed_ += end - begin;
    }
    if (!status.ok() && failure_.ok()) failure_ = std::move(status);
    changed_.notify_all();
  }
}

Status Pipeline::HashItem(const Item& item) {
  const auto update = [&](hash::Hasher& hasher) {
    if (item.block) {
      hasher.Update(item.Bytes());
    } else {
      hasher.UpdateZeros(item.length);
    }
  };
  update(*sha512_);
  if (sha256_) update(*sha256_);
  return base::OkStatus();
}

Status Pipeline::HashFromFile(uint64_t begin, uint64_t end) {
  if (!read_back_) read_back_ = std::make_shared<Block>();
  for (uint64_t at = begin; at < end;) {
    BIM_ASSIGN_OR_RETURN(io::Extent data, io::NextData(file_.fd, at, end));
    if (data.begin > at) {
      sha512_->UpdateZeros(data.begin - at);
      if (sha256_) sha256_->UpdateZeros(data.begin - at);
      at = data.begin;
    }
    while (at < data.end) {
      const size_t want =
          static_cast<size_t>(std::min<uint64_t>(kBlockSize, data.end - at));
      std::byte* const buffer = read_back_->At(0);
      BIM_ASSIGN_OR_RETURN(
          const size_t count,
          io::PreadFull(file_.fd, buffer, want, at, options_.path));
      if (count != want) {
        return base::UnavailableError(options_.path +
                                      " became shorter while it was written");
      }
      sha512_->Update({buffer, want});
      if (sha256_) sha256_->Update({buffer, want});
      at += want;
      std::lock_guard lock(mutex_);
      if (stopping_ || !failure_.ok()) return base::OkStatus();
    }
  }
  return base::OkStatus();
}

void Pipeline::RunSync() {
  std::unique_lock lock(mutex_);
  while (true) {
    // Woken by bytes, or after a while for the last few.
    changed_.wait_for(lock, kSyncInterval, [&] {
      return Leaving() || sync_ended_ ||
             (failure_.ok() && unsynced_bytes_ >= kSyncBytes);
    });
    if (Leaving() || sync_ended_) return;
    if (unsynced_bytes_ == 0 || !failure_.ok()) continue;
    unsynced_bytes_ = 0;
    sync_running_ = true;
    lock.unlock();
    Status status = SyncNow();
    lock.lock();
    sync_running_ = false;
    if (!status.ok() && failure_.ok()) failure_ = std::move(status);
    changed_.notify_all();
  }
}

Status Pipeline::SyncNow() {
  if (::fdatasync(file_.fd) != 0) {
    return base::ErrnoError(errno, "cannot sync " + options_.path);
  }
  BIM_FAILPOINT_ERROR("store.journal.data_synced");
  const int fd = journal_fd_;
  if (fd < 0) return base::OkStatus();
  if (::fdatasync(fd) != 0) {
    return base::ErrnoError(errno,
                            "cannot sync the journal of " + options_.path);
  }
  BIM_FAILPOINT("store.journal.synced");
  return base::OkStatus();
}

Status Pipeline::AwaitWritten() {
  std::unique_lock lock(mutex_);
  const uint64_t pushed = pushed_;
  changed_.wait(lock, [&] { return written_ >= pushed; });
  return failure_;
}

void Pipeline::EndSync() {
  std::unique_lock lock(mutex_);
  sync_ended_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return !sync_running_; });
}

Status Pipeline::AwaitHashed(uint64_t size, std::stop_token stop) {
  if (!options_.sha512) return failure();
  std::stop_callback wake(stop, [this] {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return hashed_ >= size || !failure_.ok() || stop.stop_requested();
  });
  if (!failure_.ok()) return failure_;
  return hashed_ >= size ? base::OkStatus() : base::CancelledError("stopped");
}

std::optional<Digest> Pipeline::FinishSha256() {
  if (!sha256_) return std::nullopt;
  return sha256_->Finish();
}

}  // namespace bim::store
