#include "pkg/store/ingest.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/hash/hasher.h"
#include "pkg/io/sparse.h"
#include "pkg/store/publish.h"

namespace bim::store {
namespace {

using base::Code;
using base::Digest;
using base::DigestAlgorithm;
using base::Result;
using base::Status;
using base::UniqueFd;

constexpr size_t kBlockSize = 1 << 20;
constexpr size_t kMaxBlocks = 6;
// A run of zeros given by AppendZeros, per item.
constexpr uint64_t kMaxZeroRun = 16 << 20;
constexpr size_t kMaxQueuedItems = 16;
// How much data may be lost to a crash: made durable and journaled when this
// much is new, or after this long.
constexpr uint64_t kSyncBytes = 32 << 20;
constexpr std::chrono::seconds kSyncInterval{2};

// Memory straight from the kernel, so that it goes back there at once.
class Block {
 public:
  Block()
      : data_(::mmap(nullptr, kBlockSize, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
    BIM_CHECK(data_ != MAP_FAILED);
  }
  ~Block() { ::munmap(data_, kBlockSize); }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  std::byte* data() { return static_cast<std::byte*>(data_); }

 private:
  void* data_;
};

// A piece of the file on its way. Without a block it is all zeros.
struct Item {
  uint64_t offset = 0;
  uint64_t length = 0;
  std::shared_ptr<Block> block;
  bool restored = false;  // lies in the file already

  std::span<const std::byte> Bytes(uint64_t from, uint64_t count) const {
    return {block->data() + from, count};
  }
};

class IngestImpl : public Ingest {
 public:
  IngestImpl(std::shared_ptr<const Disk> disk, ImageKey key,
             IngestOptions options)
      : disk_(std::move(disk)),
        key_(std::move(key)),
        options_(std::move(options)),
        hash_whole_(options_.reference == nullptr ||
                    options_.reference->chunks.empty()) {}

  ~IngestImpl() override {
    if (begun_) Suspend();
    StopThreads();
  }

  Status LoadPartial();

  const std::string& partial_validator() const override {
    return partial_.header.validator;
  }
  uint64_t partial_size() const override { return partial_.header.size; }

  Status Restore(std::stop_token stop) override;
  Status Begin(std::optional<uint64_t> size, std::string validator) override;
  bool begun() const override { return begun_; }
  const std::string& validator() const override { return validator_; }
  Status Append(std::span<const std::byte> data, std::stop_token stop) override;
  Status AppendZeros(uint64_t count, std::stop_token stop) override;
  uint64_t position() const override { return position_; }
  uint64_t stored_bytes() const override { return stored_.load(); }
  uint64_t total_bytes() const override { return total_.load(); }
  Result<ImageRecord> Commit(std::stop_token stop) override;
  void Suspend() override;
  Status Discard() override;

 private:
  // Of the caller's thread.
  Status StartOver(uint64_t chunk_size, std::optional<uint64_t> size);
  Status CheckRoom(uint64_t count) const;
  Status FillBlock(std::stop_token stop);
  Status FlushBlock(std::stop_token stop);
  Status Push(Item item, std::stop_token stop);
  void OpenDirect();
  // Waits until both stages did all that was pushed.
  Status Drain();
  Result<uint64_t> RestorePrefix(uint32_t count, std::stop_token stop);
  std::string TempPath() const { return disk_->path() + "/" + TempFile(key_); }

  // Of the stage threads.
  void StartThreads();
  void StopThreads();
  void RunStage(std::deque<Item>& queue, uint64_t& done,
                const std::function<Status(const Item&)>& work);
  Status WriteItem(const Item& item);
  Status FinishChunk(uint32_t index, bool restored);
  Status HashItem(const Item& item);
  void RunSync();
  // Lets go of an item's block; it is free when the last one did. Locked.
  void Release(Item& item);
  // Makes what `entries` describe durable and journals it.
  Status SyncNow(std::string entries);
  void Fail(Status status);

  const std::shared_ptr<const Disk> disk_;
  const ImageKey key_;
  const IngestOptions options_;
  const bool hash_whole_;

  // Of the caller's thread (and set before the stages start).
  Journal partial_;
  bool begun_ = false;
  bool restored_ = false;  // began with bytes of an earlier process
  std::optional<uint64_t> size_;
  std::string validator_;
  uint64_t chunk_size_ = 0;
  uint64_t position_ = 0;
  UniqueFd temp_;
  UniqueFd direct_;  // temp_ once more, with O_DIRECT; empty where that is not
  UniqueFd journal_;
  Item current_;  // being filled

  // Of the write stage; read by others only when drained.
  io::SparseFile target_;
  std::vector<Chunk> chunks_;
  std::optional<hash::Hasher> chunk_hasher_;
  uint64_t chunk_zeros_ = 0;  // leading zeros of the chunk in work
  bool chunk_has_data_ = false;
  std::optional<uint32_t> bad_restored_chunk_;
  std::atomic<uint64_t> stored_{0};
  std::atomic<uint64_t> total_{0};  // set by the caller's thread

  // Of the hash stage; read by others only when drained.
  std::optional<hash::Hasher> sha512_;
  std::optional<hash::Hasher> sha256_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> to_write_;
  std::deque<Item> to_hash_;
  uint64_t pushed_ = 0;  // items
  uint64_t written_ = 0;
  uint64_t hashed_ = 0;
  size_t blocks_ = 0;  // in use
  std::vector<std::shared_ptr<Block>> free_blocks_;
  std::string journal_entries_;  // of chunks not yet durable
  uint64_t unsynced_bytes_ = 0;
  bool sync_running_ = false;
  bool stopping_ = false;
  Status failure_;
  std::vector<std::thread> threads_;
};

void IngestImpl::Fail(Status status) {
  std::lock_guard lock(mutex_);
  if (failure_.ok()) failure_ = std::move(status);
  changed_.notify_all();
}

void IngestImpl::StartThreads() {
  if (!threads_.empty()) return;
  {
    std::lock_guard lock(mutex_);
    stopping_ = false;
  }
  const auto start = [this](const char* name, std::function<void()> run) {
    threads_.emplace_back([name, run = std::move(run)] {
      pthread_setname_np(pthread_self(), name);
      run();
    });
  };
  start("bim-write", [this] {
    RunStage(to_write_, written_,
             [this](const Item& item) { return WriteItem(item); });
  });
  if (hash_whole_) {
    start("bim-hash", [this] {
      RunStage(to_hash_, hashed_,
               [this](const Item& item) { return HashItem(item); });
    });
  }
  start("bim-sync", [this] { RunSync(); });
}

void IngestImpl::StopThreads() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void IngestImpl::RunStage(std::deque<Item>& queue, uint64_t& done,
                          const std::function<Status(const Item&)>& work) {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || !queue.empty(); });
    if (queue.empty()) return;
    Item item = std::move(queue.front());
    queue.pop_front();
    const bool skip = !failure_.ok();
    lock.unlock();
    if (!skip) {
      if (Status status = work(item); !status.ok()) Fail(std::move(status));
    }
    lock.lock();
    ++done;
    Release(item);
    changed_.notify_all();
  }
}

Status IngestImpl::Push(Item item, std::stop_token stop) {
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
  if (hash_whole_) to_hash_.push_back(item);
  to_write_.push_back(std::move(item));
  changed_.notify_all();
  return base::OkStatus();
}

Status IngestImpl::Drain() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return written_ == pushed_ && (!hash_whole_ || hashed_ == pushed_);
  });
  return failure_;
}

// Makes current_ a block with room in it.
Status IngestImpl::FillBlock(std::stop_token stop) {
  if (current_.block) return base::OkStatus();
  std::stop_callback wake(stop, [this] {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  });
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return !failure_.ok() || stop.stop_requested() || blocks_ < kMaxBlocks;
  });
  if (!failure_.ok()) return failure_;
  if (stop.stop_requested()) return base::CancelledError("stopped");
  ++blocks_;
  if (free_blocks_.empty()) {
    current_.block = std::make_shared<Block>();
  } else {
    current_.block = std::move(free_blocks_.back());
    free_blocks_.pop_back();
  }
  lock.unlock();
  current_.offset = position_;
  current_.length = 0;
  current_.restored = false;
  return base::OkStatus();
}

Status IngestImpl::FlushBlock(std::stop_token stop) {
  if (!current_.block || current_.length == 0) return base::OkStatus();
  // A refused push (stopped) keeps the block: its bytes count as given.
  BIM_RETURN_IF_ERROR(Push(current_, stop));
  std::lock_guard lock(mutex_);
  Release(current_);
  current_.length = 0;
  changed_.notify_all();
  return base::OkStatus();
}

void IngestImpl::Release(Item& item) {
  if (item.block && item.block.use_count() == 1) {
    free_blocks_.push_back(std::move(item.block));
    --blocks_;
  }
  item.block.reset();
}

Status IngestImpl::CheckRoom(uint64_t count) const {
  BIM_CHECK(begun_);
  const uint64_t limit =
      size_ ? *size_ : uint64_t{kMaxChunks} * kUnknownSizeChunk;
  if (count <= limit - position_) return base::OkStatus();
  if (size_) {
    return base::OutOfRangeError("more bytes came than the " +
                                 std::to_string(*size_) + " announced");
  }
  return base::OutOfRangeError(
      "more than " + std::to_string(limit) +
      " bytes came from a source that does not tell its length");
}

Status IngestImpl::Append(std::span<const std::byte> data,
                          std::stop_token stop) {
  BIM_RETURN_IF_ERROR(CheckRoom(data.size()));
  while (!data.empty()) {
    BIM_RETURN_IF_ERROR(FillBlock(stop));
    // Blocks end where the file offset is a multiple of their size.
    const uint64_t capacity = kBlockSize - current_.offset % kBlockSize;
    if (current_.length == capacity) {
      BIM_RETURN_IF_ERROR(FlushBlock(stop));
      continue;
    }
    const size_t count = static_cast<size_t>(
        std::min<uint64_t>(data.size(), capacity - current_.length));
    std::memcpy(current_.block->data() + current_.length, data.data(), count);
    current_.length += count;
    position_ += count;
    data = data.subspan(count);
    if (current_.length == capacity) BIM_RETURN_IF_ERROR(FlushBlock(stop));
  }
  return base::OkStatus();
}

Status IngestImpl::AppendZeros(uint64_t count, std::stop_token stop) {
  BIM_RETURN_IF_ERROR(CheckRoom(count));
  BIM_RETURN_IF_ERROR(FlushBlock(stop));
  while (count > 0) {
    Item item;
    item.offset = position_;
    item.length = std::min(count, kMaxZeroRun);
    const uint64_t length = item.length;
    BIM_RETURN_IF_ERROR(Push(std::move(item), stop));
    position_ += length;
    count -= length;
  }
  return base::OkStatus();
}

Status IngestImpl::WriteItem(const Item& item) {
  if (!item.restored) {
    BIM_FAILPOINT_ERROR("store.ingest.write");
    if (item.block) {
      Status written = io::WriteSparse(target_, item.Bytes(0, item.length),
                                       item.offset, false);
      if (!written.ok()) return written.WithContext(TempPath());
    }
  }
  for (uint64_t done = 0; done < item.length;) {
    const uint64_t at = item.offset + done;
    const uint32_t index = static_cast<uint32_t>(at / chunk_size_);
    const uint64_t chunk_end = (index + uint64_t{1}) * chunk_size_;
    const uint64_t count = std::min(item.length - done, chunk_end - at);
    if (at % chunk_size_ == 0) {
      chunk_zeros_ = 0;
      chunk_has_data_ = false;
    }
    const bool zeros = !item.block || io::IsZero(item.Bytes(done, count));
    if (zeros && !chunk_has_data_) {
      chunk_zeros_ += count;
    } else {
      if (!chunk_has_data_) chunk_hasher_->UpdateZeros(chunk_zeros_);
      chunk_has_data_ = true;
      if (item.block) {
        chunk_hasher_->Update(item.Bytes(done, count));
      } else {
        chunk_hasher_->UpdateZeros(count);
      }
    }
    done += count;
    stored_.store(at + count);
    if (at + count == chunk_end || (size_ && at + count == *size_)) {
      BIM_RETURN_IF_ERROR(FinishChunk(index, item.restored));
    }
  }
  return base::OkStatus();
}

Status IngestImpl::FinishChunk(uint32_t index, bool restored) {
  Chunk chunk;
  chunk.zero = !chunk_has_data_;
  if (chunk_has_data_) {
    const Digest digest = chunk_hasher_->Finish();
    std::copy(digest.bytes().begin(), digest.bytes().end(),
              chunk.sha256.begin());
  }
  chunk_has_data_ = false;
  chunk_zeros_ = 0;
  if (chunks_.size() <= index) chunks_.resize(index + 1);
  chunks_[index] = chunk;
  const auto& reference = options_.reference;
  const bool differs =
      reference && !reference->chunks.empty() &&
      (index >= reference->chunks.size() || reference->chunks[index] != chunk);
  if (restored) {
    // Of another content, or not what was journaled: not continued from here.
    if (!bad_restored_chunk_ && (differs || partial_.chunks[index] != chunk)) {
      bad_restored_chunk_ = index;
    }
    return base::OkStatus();
  }
  if (differs) {
    return base::DataLossError("chunk " + std::to_string(index) +
                               " of the source differs from its manifest");
  }
  std::lock_guard lock(mutex_);
  if (journal_) journal_entries_ += EncodeJournalEntry(index, chunk);
  unsynced_bytes_ += chunk_size_;
  if (unsynced_bytes_ >= kSyncBytes) changed_.notify_all();
  return base::OkStatus();
}

Status IngestImpl::HashItem(const Item& item) {
  const auto update = [&](hash::Hasher& hasher) {
    if (item.block) {
      hasher.Update(item.Bytes(0, item.length));
    } else {
      hasher.UpdateZeros(item.length);
    }
  };
  update(*sha512_);
  if (sha256_) update(*sha256_);
  return base::OkStatus();
}

void IngestImpl::RunSync() {
  std::unique_lock lock(mutex_);
  while (true) {
    // Woken by bytes, or after a while for the last few.
    changed_.wait_for(lock, kSyncInterval, [&] {
      return stopping_ || (failure_.ok() && unsynced_bytes_ >= kSyncBytes);
    });
    if (stopping_) return;
    if (unsynced_bytes_ == 0 || !failure_.ok()) continue;
    std::string entries = std::exchange(journal_entries_, {});
    unsynced_bytes_ = 0;
    sync_running_ = true;
    lock.unlock();
    Status status = SyncNow(std::move(entries));
    lock.lock();
    sync_running_ = false;
    if (!status.ok() && failure_.ok()) failure_ = std::move(status);
    changed_.notify_all();
  }
}

Status IngestImpl::SyncNow(std::string entries) {
  if (::fdatasync(temp_.get()) != 0) {
    return base::ErrnoError(errno, "cannot sync " + TempPath());
  }
  BIM_FAILPOINT_ERROR("store.journal.data_synced");
  if (!journal_ || entries.empty()) return base::OkStatus();
  // O_APPEND.
  for (size_t done = 0; done < entries.size();) {
    const ssize_t count =
        ::write(journal_.get(), entries.data() + done, entries.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      return base::ErrnoError(errno,
                              "cannot write the journal of " + TempPath());
    }
    done += static_cast<size_t>(count);
  }
  BIM_FAILPOINT_ERROR("store.journal.appended");
  if (::fdatasync(journal_.get()) != 0) {
    return base::ErrnoError(errno, "cannot sync the journal of " + TempPath());
  }
  BIM_FAILPOINT("store.journal.synced");
  return base::OkStatus();
}

Status IngestImpl::LoadPartial() {
  BIM_RETURN_IF_ERROR(MakeImageDir(*disk_, key_));
  const io::Dir& root = disk_->root();
  auto journal = ReadJournal(root, key_);
  if (!journal.ok()) {
    // A journal of a newer version is not ours to overwrite.
    return journal.status().code() == Code::kFailedPrecondition
               ? journal.status()
               : base::OkStatus();
  }
  const auto st = root.Stat(TempFile(key_));
  if (!st.ok() || !S_ISREG(st->st_mode) ||
      st->st_ino != journal->header.inode) {
    return base::OkStatus();
  }
  partial_ = *std::move(journal);
  return base::OkStatus();
}

void IngestImpl::OpenDirect() {
  direct_.Reset();
  if (auto fd = disk_->root().OpenFile(TempFile(key_), O_WRONLY | O_DIRECT);
      fd.ok()) {
    direct_ = *std::move(fd);
  }
  target_ = {temp_.get(), direct_.get()};
}

Status IngestImpl::StartOver(uint64_t chunk_size,
                             std::optional<uint64_t> size) {
  // What the stages have is of the old content. A failed stage skips it.
  Fail(base::CancelledError("started over"));
  (void)Drain();
  StopThreads();
  std::lock_guard lock(mutex_);
  failure_ = base::OkStatus();
  Release(current_);
  current_ = Item();
  journal_entries_.clear();
  unsynced_bytes_ = 0;
  position_ = 0;
  stored_ = 0;
  size_ = size;
  total_ = size.value_or(0);
  chunk_size_ = chunk_size;
  chunks_.clear();
  chunk_zeros_ = 0;
  chunk_has_data_ = false;
  bad_restored_chunk_.reset();
  chunk_hasher_.emplace(DigestAlgorithm::kSha256);
  if (hash_whole_) {
    sha512_.emplace(DigestAlgorithm::kSha512);
    if (options_.expect_sha256) sha256_.emplace(DigestAlgorithm::kSha256);
  }
  return base::OkStatus();
}

Result<uint64_t> IngestImpl::RestorePrefix(uint32_t count,
                                           std::stop_token stop) {
  BIM_RETURN_IF_ERROR(
      StartOver(partial_.header.chunk_size, partial_.header.size));
  begun_ = true;
  StartThreads();
  const uint64_t end = std::min(*size_, count * partial_.header.chunk_size);
  while (position_ < end) {
    BIM_RETURN_IF_ERROR(FillBlock(stop));
    current_.restored = true;
    const size_t want = static_cast<size_t>(
        std::min(end - position_, kBlockSize - position_ % kBlockSize));
    BIM_ASSIGN_OR_RETURN(
        size_t got, io::PreadFull(temp_.get(), current_.block->data(), want,
                                  position_, TempPath()));
    // Cut off: what is missing reads as zeros and differs from the journal.
    std::memset(current_.block->data() + got, 0, want - got);
    current_.length = want;
    position_ += want;
    BIM_RETURN_IF_ERROR(FlushBlock(stop));
  }
  BIM_RETURN_IF_ERROR(Drain());
  return bad_restored_chunk_ ? *bad_restored_chunk_ * chunk_size_ : end;
}

Status IngestImpl::Restore(std::stop_token stop) {
  if (partial_.header.validator.empty()) return base::OkStatus();
  const io::Dir& root = disk_->root();
  BIM_ASSIGN_OR_RETURN(temp_, root.OpenFile(TempFile(key_), O_RDWR));
  OpenDirect();
  uint32_t count = 0;
  while (count < partial_.chunks.size() && partial_.chunks[count]) ++count;
  if (count == 0) return base::OkStatus();
  BIM_ASSIGN_OR_RETURN(uint64_t good, RestorePrefix(count, stop));
  if (good < std::min(*size_, count * chunk_size_)) {
    BIM_LOG_WARN("{}: chunk {} differs from its journal: continuing before it",
                 TempPath(), good / chunk_size_);
    const uint32_t fewer = static_cast<uint32_t>(good / chunk_size_);
    BIM_ASSIGN_OR_RETURN(uint64_t again, RestorePrefix(fewer, stop));
    if (again != good) {
      return base::UnavailableError(TempPath() +
                                    " reads differently each time");
    }
  }
  // What lies behind is not vouched for: gone, so that zeros can stay holes.
  if (::ftruncate(temp_.get(), static_cast<off_t>(position_)) != 0 ||
      ::ftruncate(temp_.get(), static_cast<off_t>(*size_)) != 0) {
    return base::ErrnoError(errno, "cannot truncate " + TempPath());
  }
  // A fresh journal that holds just what was found good.
  std::string text = EncodeJournalHeader(partial_.header);
  for (uint32_t i = 0; i < ChunkCount(position_, chunk_size_); ++i) {
    text += EncodeJournalEntry(i, chunks_[i]);
  }
  BIM_RETURN_IF_ERROR(root.ReplaceFile(RecordFile(key_), text));
  BIM_ASSIGN_OR_RETURN(UniqueFd journal,
                       root.OpenFile(RecordFile(key_), O_WRONLY | O_APPEND));
  validator_ = partial_.header.validator;
  partial_ = Journal();
  restored_ = position_ > 0;
  std::lock_guard lock(mutex_);
  journal_ = std::move(journal);
  return base::OkStatus();
}

Status IngestImpl::Begin(std::optional<uint64_t> size, std::string validator) {
  if (size && (*size == 0 || *size % 512 != 0)) {
    return base::InvalidArgumentError(*size == 0
                                          ? "the file is empty"
                                          : "size " + std::to_string(*size) +
                                                " is not a multiple of 512");
  }
  BIM_RETURN_IF_ERROR(
      StartOver(size ? ChunkSizeFor(*size) : kUnknownSizeChunk, size));
  partial_ = Journal();
  restored_ = false;
  const io::Dir& root = disk_->root();
  {
    std::lock_guard lock(mutex_);
    journal_.Reset();
  }
  BIM_RETURN_IF_ERROR(RemovePartial(*disk_, key_));
  BIM_ASSIGN_OR_RETURN(
      temp_, root.OpenFile(TempFile(key_), O_RDWR | O_CREAT | O_EXCL, 0600));
  OpenDirect();
  BIM_FAILPOINT_ERROR("store.ingest.temp_made");
  if (size && ::ftruncate(temp_.get(), static_cast<off_t>(*size)) != 0) {
    return base::ErrnoError(errno, "cannot make " + TempPath() + " " +
                                       std::to_string(*size) + " bytes long");
  }
  validator_ = std::move(validator);
  // A ready file that is being replaced keeps its record until the new one is
  // sealed.
  const bool has_record = root.Stat(RecordFile(key_)).ok();
  if (size && !validator_.empty() && !has_record) {
    struct stat st = {};
    if (::fstat(temp_.get(), &st) != 0) {
      return base::ErrnoError(errno, "cannot stat " + TempPath());
    }
    BIM_RETURN_IF_ERROR(root.ReplaceFile(
        RecordFile(key_), EncodeJournalHeader({key_, *size, chunk_size_,
                                               validator_, st.st_ino})));
    BIM_ASSIGN_OR_RETURN(UniqueFd journal,
                         root.OpenFile(RecordFile(key_), O_WRONLY | O_APPEND));
    std::lock_guard lock(mutex_);
    journal_ = std::move(journal);
    BIM_FAILPOINT("store.journal.made");
  }
  begun_ = true;
  StartThreads();
  return base::OkStatus();
}

Result<ImageRecord> IngestImpl::Commit(std::stop_token stop) {
  BIM_CHECK(begun_);
  if (size_ && position_ != *size_) {
    return base::UnavailableError("only " + std::to_string(position_) + " of " +
                                  std::to_string(*size_) + " bytes came");
  }
  BIM_RETURN_IF_ERROR(FlushBlock(stop));
  // fsync while the hash of the last blocks is still being made.
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return written_ == pushed_ && !sync_running_; });
    if (!failure_.ok()) return failure_;
  }
  if (!size_) {
    // Only now is the length known: the same rules.
    if (position_ == 0 || position_ % 512 != 0) {
      const Status wrong = base::FailedPreconditionError(
          position_ == 0 ? "the file is empty"
                         : "size " + std::to_string(position_) +
                               " is not a multiple of 512");
      (void)Discard();
      return wrong;
    }
    if (::ftruncate(temp_.get(), static_cast<off_t>(position_)) != 0) {
      return base::ErrnoError(errno, "cannot set the length of " + TempPath());
    }
    if (position_ % chunk_size_ != 0) {
      size_ = position_;
      BIM_RETURN_IF_ERROR(
          FinishChunk(static_cast<uint32_t>(position_ / chunk_size_), false));
    }
    size_ = position_;
  }
  BIM_FAILPOINT_ERROR("store.commit.before_fsync");
  if (::fsync(temp_.get()) != 0) {
    return base::ErrnoError(errno, "cannot sync " + TempPath());
  }
  BIM_FAILPOINT("store.commit.after_fsync");
  BIM_RETURN_IF_ERROR(Drain());
  // No stage, and no journal entry, may come between the seal and the rename.
  StopThreads();

  ImageRecord record;
  record.key = key_;
  record.chunk_size = chunk_size_;
  record.chunks = chunks_;
  record.origin = (restored_ ? "resumed " : "") + options_.origin;
  BIM_CHECK(record.chunks.size() == ChunkCount(*size_, chunk_size_));
  if (hash_whole_) {
    record.sha512 = sha512_->Finish();
    if (sha256_) record.sha256 = sha256_->Finish();
  } else {
    record.sha512 = options_.reference->sha512;
    record.sha256 = options_.reference->sha256;
  }
  const auto compare = [](const std::optional<Digest>& expected,
                          const std::optional<Digest>& found) -> Status {
    if (!expected || (found && *expected == *found)) return base::OkStatus();
    return base::FailedPreconditionError(
        "wrong checksum: expected " +
        std::string(base::DigestName(expected->algorithm())) + " " +
        expected->Hex() + ", found " + (found ? found->Hex() : "none"));
  };
  Status checked = compare(options_.expect_sha512, record.sha512);
  if (checked.ok()) checked = compare(options_.expect_sha256, record.sha256);
  if (!checked.ok()) {
    (void)Discard();
    return checked;
  }
  auto published = Publish(*disk_, key_, temp_.get(), std::move(record),
                           options_.file_mode, options_.shown_checksum);
  if (!published.ok()) {
    const Code code = published.status().code();
    if (code == Code::kFailedPrecondition || code == Code::kDataLoss) {
      (void)Discard();
    }
    return published;
  }
  begun_ = false;
  published->chunks.clear();
  published->chunks.shrink_to_fit();
  return published;
}

void IngestImpl::Suspend() {
  if (!begun_) return;
  begun_ = false;
  // What fills the block in work is not yet in the file; a chunk that it
  // completes is worth a last write.
  (void)FlushBlock({});
  (void)Drain();
  StopThreads();
  std::string entries;
  bool failed = false;
  {
    std::lock_guard lock(mutex_);
    entries = std::exchange(journal_entries_, {});
    failed = !failure_.ok();
  }
  // Interrupted while restoring: what lies there stays as it is.
  if (!partial_.header.validator.empty()) return;
  if (!journal_) {
    // Nothing can continue it.
    (void)RemovePartial(*disk_, key_);
    return;
  }
  if (failed && entries.empty()) return;
  if (Status synced = SyncNow(std::move(entries)); !synced.ok()) {
    BIM_LOG_WARN("{}: the last bytes cannot be kept: {}", TempPath(),
                 synced.message());
  }
}

Status IngestImpl::Discard() {
  Fail(base::CancelledError("discarded"));
  (void)Drain();
  StopThreads();
  begun_ = false;
  temp_.Reset();
  direct_.Reset();
  journal_.Reset();
  partial_ = Journal();
  position_ = 0;
  stored_ = 0;
  return RemovePartial(*disk_, key_);
}

}  // namespace

Result<std::unique_ptr<Ingest>> Ingest::Open(std::shared_ptr<const Disk> disk,
                                             ImageKey key,
                                             IngestOptions options) {
  auto ingest = std::make_unique<IngestImpl>(std::move(disk), std::move(key),
                                             std::move(options));
  BIM_RETURN_IF_ERROR(ingest->LoadPartial());
  return std::unique_ptr<Ingest>(std::move(ingest));
}

Result<ImageRecord> Reflink(const Disk& disk, const ImageKey& key, int source,
                            const ImageRecord& record, mode_t file_mode,
                            const std::string& expected_checksum) {
  BIM_RETURN_IF_ERROR(MakeImageDir(disk, key));
  const io::Dir& root = disk.root();
  const std::string shown = disk.path() + "/" + TempFile(key);
  BIM_RETURN_IF_ERROR(RemovePartial(disk, key));
  BIM_ASSIGN_OR_RETURN(
      UniqueFd temp,
      root.OpenFile(TempFile(key), O_RDWR | O_CREAT | O_EXCL, 0600));
  const auto fail = [&](Status status) -> Status {
    (void)root.RemoveFile(TempFile(key));
    return status;
  };
  if (::ioctl(temp.get(), FICLONE, source) != 0) {
    const int error = errno;
    if (error == EOPNOTSUPP || error == EXDEV || error == EINVAL ||
        error == ENOTTY) {
      return fail(base::UnimplementedError("no reflink between these disks"));
    }
    return fail(base::ErrnoError(error, "cannot clone into " + shown));
  }
  BIM_FAILPOINT("store.reflink.cloned");
  // The clone is of what the record describes: the source was not touched
  // before, and is compared again now that the clone cannot change any more.
  struct stat st = {};
  if (::fstat(source, &st) != 0 || !(StampOf(st) == record.stamp)) {
    return fail(base::AbortedError("the source changed while it was cloned"));
  }
  if (::fsync(temp.get()) != 0) {
    return fail(base::ErrnoError(errno, "cannot sync " + shown));
  }
  auto published =
      Publish(disk, key, temp.get(), record, file_mode, expected_checksum);
  if (!published.ok()) return fail(published.status());
  published->chunks.clear();
  return published;
}

}  // namespace bim::store
