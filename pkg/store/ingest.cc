#include "pkg/store/ingest.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/hash/hasher.h"
#include "pkg/io/dir.h"
#include "pkg/io/sparse.h"
#include "pkg/store/pipeline.h"
#include "pkg/store/publish.h"
#include "pkg/store/range_set.h"

namespace bim::store {
namespace {

using base::Code;
using base::Digest;
using base::DigestAlgorithm;
using base::Result;
using base::Status;
using base::UniqueFd;

// A run of zeros given by AppendZeros, per item.
constexpr uint64_t kMaxZeroRun = 16 << 20;

// What may be given by WriteAt and HoleAt in separate pieces.
constexpr size_t kMaxPieces = 262'144;

// The digest of a chunk while its bytes come.
class ChunkHasher {
 public:
  void Add(std::span<const std::byte> data) {
    if (!has_data_ && io::IsZero(data)) {
      zeros_ += data.size();
      return;
    }
    Begin();
    hasher_.Update(data);
  }
  void AddZeros(uint64_t count) {
    if (has_data_) {
      hasher_.UpdateZeros(count);
    } else {
      zeros_ += count;
    }
  }
  // Begins anew.
  Chunk Finish() {
    Chunk chunk;
    chunk.zero = !has_data_;
    if (has_data_) {
      const Digest digest = hasher_.Finish();
      std::copy(digest.bytes().begin(), digest.bytes().end(),
                chunk.sha256.begin());
    }
    has_data_ = false;
    zeros_ = 0;
    return chunk;
  }
  void Reset() { (void)Finish(); }

 private:
  // Leading zeros are not hashed before something else comes.
  void Begin() {
    if (!has_data_) hasher_.UpdateZeros(zeros_);
    has_data_ = true;
  }

  hash::Hasher hasher_{DigestAlgorithm::kSha256};
  uint64_t zeros_ = 0;
  bool has_data_ = false;
};

// Where a writer stopped within a chunk.
struct Tail {
  uint64_t position = 0;
  ChunkHasher hasher;
};

// A chunk whose bytes are given by WriteAt and HoleAt.
struct LooseChunk {
  // All of it was given: it only is compared from now on.
  bool taken = false;
  // Taken from memory, and on its way into the file.
  bool coming = false;
  // It was taken and refused: its bytes are of no use.
  bool stale = false;
  uint32_t writers = 0;  // at work in it
  // Where data was written to it; else the file has a hole.
  uint64_t data_begin = UINT64_MAX;
  uint64_t data_end = 0;

  bool HasData(uint64_t begin, uint64_t end) const {
    return data_begin < end && begin < data_end;
  }
};

Status Differs(uint32_t index) {
  return base::DataLossError("chunk " + std::to_string(index) +
                             " differs from its manifest");
}

class WriterImpl;

class IngestImpl : public Ingest {
 public:
  IngestImpl(std::shared_ptr<const Disk> disk, ImageKey key,
             IngestOptions options)
      : disk_(std::move(disk)),
        key_(std::move(key)),
        options_(std::move(options)),
        hash_whole_(!options_.trust_reference),
        pipeline_({hash_whole_, options_.expect_sha256.has_value(),
                   disk_->path() + "/" + TempFile(key_)}) {}

  ~IngestImpl() override {
    if (begun_) Suspend();
    pipeline_.Stop();
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
  const std::shared_ptr<const ImageRecord>& reference() const override {
    return options_.reference;
  }
  std::vector<io::Extent> Missing() override;
  uint64_t chunk_size() const override { return chunk_size_; }
  bool HasChunk(uint32_t index) const override {
    return pipeline_.HasChunk(index);
  }
  std::unique_ptr<IngestWriter> Write(uint64_t begin, uint64_t end) override;
  Status CloneChunk(uint32_t index, int source,
                    uint64_t source_offset) override;
  Result<std::optional<Digest>> DigestAt(uint64_t begin, uint64_t end,
                                         std::stop_token stop) override;
  Status WriteAt(uint64_t offset, std::span<const std::byte> data,
                 std::stop_token stop) override;
  Status HoleAt(uint64_t begin, uint64_t end, std::stop_token stop) override;
  Status failure() const override { return pipeline_.failure(); }
  Status Settle() override {
    if (!begun_) return base::OkStatus();
    if (front_) BIM_RETURN_IF_ERROR(front_->Flush({}));
    return pipeline_.AwaitWritten();
  }
  Status Rest() override {
    if (!begun_) return base::OkStatus();
    if (front_) BIM_RETURN_IF_ERROR(front_->Flush({}));
    return pipeline_.Rest();
  }
  Status Append(std::span<const std::byte> data, std::stop_token stop) override;
  Status AppendZeros(uint64_t count, std::stop_token stop) override;
  uint64_t position() override;
  uint64_t stored_bytes() const override { return pipeline_.stored_bytes(); }
  uint64_t total_bytes() const override { return total_.load(); }
  void ExpectSha512(const Digest& digest) override { told_sha512_ = digest; }
  Result<ImageRecord> Commit(std::stop_token stop) override;
  void Suspend() override;
  Status Discard() override;

 private:
  friend class WriterImpl;

  Status CheckRoom(uint64_t position, uint64_t end, uint64_t count) const;
  // Gives `count` bytes in order to writers of what is missing: calls `give`
  // with a writer, where in the bytes, and how many.
  Status GiveFront(
      uint64_t count,
      const std::function<Status(IngestWriter&, uint64_t, uint64_t)>& give);
  // Ends what is in work and begins with an empty pipeline.
  void StartOver(uint64_t chunk_size, std::optional<uint64_t> size);
  void OpenDirect();
  // Counts the reference's chunks of zeros as there.
  Status HaveZeroChunks();
  Status DoRestore(std::stop_token stop);
  // Reads the journaled chunks again and keeps the good ones.
  Status RestoreChunks(std::string& journal, std::stop_token stop);
  Result<Chunk> ReadChunk(uint64_t begin, uint64_t end);

  // Before each WriteAt and HoleAt.
  Status BeginLoose(uint64_t begin, uint64_t end, std::stop_token stop);
  // Takes chunks that are whole in `data` and that nobody gave a byte of, up to
  // the end of a block: they are hashed from memory. How many bytes it took,
  // perhaps none.
  Result<size_t> WriteChunks(uint64_t offset, std::span<const std::byte> data,
                             const std::stop_token& stop);
  // The second half of it: one block's worth.
  Status WriteClaimed(Item item, std::span<const std::byte> data);
  // The same as WriteAt for a piece of one chunk.
  Status WritePiece(uint64_t offset, std::span<const std::byte> data);
  // The file may hold other bytes than zeros there. Locked.
  bool IsDirty(const LooseChunk& chunk, uint64_t begin, uint64_t end) const;
  // The range of one chunk was given. True: its chunk is complete now, and the
  // caller's to take. Locked.
  bool Given(LooseChunk& chunk, uint64_t begin, uint64_t end);
  // The same, for a writer in that chunk, which leaves.
  bool Leave(uint64_t begin, uint64_t end);
  // Reads a chunk that is complete back and counts it.
  Status TakeChunk(uint32_t index);
  Status TakeChunk(uint32_t index, const Chunk& chunk);
  // The same for chunks that are one hole: nothing is read.
  Status TakeHollow(const io::Extent& chunks);
  // Until those chunks of it that are taken are in the file, or refused.
  void AwaitComing(uint64_t begin, uint64_t end);
  // DATA_LOSS unless the file has these bytes (zeros).
  Status Compare(uint64_t offset, std::span<const std::byte> data);
  Status CompareZeros(uint64_t begin, uint64_t end, std::stop_token stop);

  Status OpenJournal(const std::string& text);
  // Deletes the temp file and what is recorded of it, unless another ingest
  // has begun there since.
  Status RemoveOwn();
  Status SetFinalSize();
  Status CheckDigests(const ImageRecord& record) const;
  uint64_t Limit() const {
    return size_ ? *size_ : uint64_t{kMaxChunks} * kUnknownSizeChunk;
  }
  uint64_t ChunkEnd(uint64_t offset) const {
    return std::min(Limit(), (offset / chunk_size_ + 1) * chunk_size_);
  }
  std::string TempPath() const { return disk_->path() + "/" + TempFile(key_); }

  const std::shared_ptr<const Disk> disk_;
  const ImageKey key_;
  const IngestOptions options_;
  const bool hash_whole_;

  std::optional<Digest> told_sha512_;
  Journal partial_;
  bool begun_ = false;
  bool restored_ = false;  // began with bytes of an earlier process
  std::optional<uint64_t> size_;
  std::string validator_;
  uint64_t chunk_size_ = 0;
  UniqueFd temp_;
  UniqueFd direct_;  // temp_ once more, with O_DIRECT; empty where that is not
  UniqueFd journal_;
  std::atomic<uint64_t> total_{0};
  Pipeline pipeline_;

  // What writers share.
  mutable std::mutex mutex_;
  std::map<uint32_t, Tail> tails_;  // by chunk
  // Chunks that hold bytes of no use, and how many.
  std::map<uint32_t, uint64_t> dirty_;
  int writers_ = 0;

  // Of WriteAt and HoleAt: what was given, of all chunks and of each. Empty as
  // long as neither was called.
  RangeSet given_;
  std::vector<LooseChunk> loose_;
  std::condition_variable came_;  // with mutex_: one is no longer coming

  std::unique_ptr<IngestWriter> front_;  // of Append
  uint64_t front_end_ = 0;
  std::optional<uint64_t> front_at_;  // set by the first Append
  uint64_t unknown_end_ = 0;          // without a size: how much was given
};

class WriterImpl : public IngestWriter {
 public:
  WriterImpl(IngestImpl& ingest, uint64_t begin, uint64_t end)
      : ingest_(ingest), position_(begin), end_(end) {
    item_.offset = begin;
  }
  ~WriterImpl() override;

  Status Append(std::span<const std::byte> data, std::stop_token stop) override;
  Status AppendZeros(uint64_t count, std::stop_token stop) override;
  uint64_t position() const override { return position_; }
  Status Flush(std::stop_token stop) override;

  ChunkHasher hasher_;
  // What another writer gave of the first chunk is not written again.
  uint64_t skip_to_ = 0;

 private:
  // How many of the next `count` bytes are there already. Moves on.
  uint64_t Skip(uint64_t count);
  // At the begin of a chunk: clears what lies there, if it is of no use.
  Status BeginChunk(std::stop_token stop);
  Status FinishChunk();
  // Gives up what came of the chunk in work.
  void DropChunk();
  uint64_t ChunkBegin() const {
    return position_ / ingest_.chunk_size_ * ingest_.chunk_size_;
  }

  IngestImpl& ingest_;
  uint64_t position_;
  const uint64_t end_;
  Item item_;  // being filled
};

// ------------------------------------------------------------- writing

WriterImpl::~WriterImpl() {
  (void)Skip(UINT64_MAX);
  const bool within =
      position_ % ingest_.chunk_size_ != 0 && position_ < ingest_.Limit();
  bool keep = within;
  if (ingest_.options_.reference && within) {
    DropChunk();
    keep = false;
  }
  if (!Flush({}).ok()) keep = false;
  if (item_.block) ingest_.pipeline_.DropBlock(std::move(item_.block));
  ingest_.pipeline_.AddWriter(-1);
  std::lock_guard lock(ingest_.mutex_);
  --ingest_.writers_;
  if (!ingest_.size_) ingest_.unknown_end_ = position_;
  if (!within) return;
  const uint32_t index = static_cast<uint32_t>(position_ / ingest_.chunk_size_);
  if (keep) {
    ingest_.tails_[index] = Tail{position_, std::move(hasher_)};
  } else if (position_ % ingest_.chunk_size_ != 0) {
    ingest_.dirty_.emplace(index, 0);
  }
}

uint64_t WriterImpl::Skip(uint64_t count) {
  if (position_ >= skip_to_) return 0;
  count = std::min(count, skip_to_ - position_);
  position_ += count;
  item_.offset = position_;
  return count;
}

Status WriterImpl::BeginChunk(std::stop_token stop) {
  const uint32_t index = static_cast<uint32_t>(position_ / ingest_.chunk_size_);
  Item punch;
  {
    std::lock_guard lock(ingest_.mutex_);
    const auto dirty = ingest_.dirty_.find(index);
    if (dirty == ingest_.dirty_.end()) return base::OkStatus();
    punch.dropped = dirty->second;
  }
  BIM_RETURN_IF_ERROR(Flush(stop));
  punch.offset = position_;
  punch.length = ingest_.ChunkEnd(position_) - position_;
  punch.punch = true;
  BIM_RETURN_IF_ERROR(ingest_.pipeline_.Push(std::move(punch), stop));
  std::lock_guard lock(ingest_.mutex_);
  ingest_.dirty_.erase(index);
  return base::OkStatus();
}

Status WriterImpl::Append(std::span<const std::byte> data,
                          std::stop_token stop) {
  if (stop.stop_requested()) return base::CancelledError("stopped");
  BIM_RETURN_IF_ERROR(ingest_.CheckRoom(position_, end_, data.size()));
  data = data.subspan(static_cast<size_t>(Skip(data.size())));
  while (!data.empty()) {
    if (position_ % ingest_.chunk_size_ == 0) {
      BIM_RETURN_IF_ERROR(BeginChunk(stop));
    }
    // Zeros, or a block that could not be handed on before.
    if (item_.length > 0 && (!item_.block || position_ % kBlockSize == 0)) {
      BIM_RETURN_IF_ERROR(Flush(stop));
    }
    if (!item_.block) {
      BIM_ASSIGN_OR_RETURN(item_.block, ingest_.pipeline_.TakeBlock(stop));
    }
    const uint64_t chunk_end = ingest_.ChunkEnd(position_);
    const uint64_t block_end = (position_ / kBlockSize + 1) * kBlockSize;
    const size_t take = static_cast<size_t>(std::min<uint64_t>(
        data.size(), std::min({end_, chunk_end, block_end}) - position_));
    std::memcpy(item_.block->At(position_), data.data(), take);
    hasher_.Add(data.first(take));
    item_.length += take;
    position_ += take;
    data = data.subspan(take);
    if (position_ == chunk_end) BIM_RETURN_IF_ERROR(FinishChunk());
    if (position_ == block_end || position_ == end_) {
      BIM_RETURN_IF_ERROR(Flush(stop));
    }
  }
  return base::OkStatus();
}

Status WriterImpl::AppendZeros(uint64_t count, std::stop_token stop) {
  if (stop.stop_requested()) return base::CancelledError("stopped");
  BIM_RETURN_IF_ERROR(ingest_.CheckRoom(position_, end_, count));
  count -= Skip(count);
  while (count > 0) {
    if (position_ % ingest_.chunk_size_ == 0) {
      BIM_RETURN_IF_ERROR(BeginChunk(stop));
    }
    if (item_.block) {
      // Few zeros go along with the data.
      const uint64_t block_end = (position_ / kBlockSize + 1) * kBlockSize;
      if (count < 65'536 || item_.length == 0) {
        static constexpr std::byte kZeros[4096] = {};
        const size_t take = static_cast<size_t>(
            std::min<uint64_t>({count, sizeof(kZeros), block_end - position_}));
        BIM_RETURN_IF_ERROR(Append(std::span(kZeros).first(take), stop));
        count -= take;
        continue;
      }
      BIM_RETURN_IF_ERROR(Flush(stop));
    }
    const uint64_t chunk_end = ingest_.ChunkEnd(position_);
    const uint64_t take =
        std::min(count, std::min(end_, chunk_end) - position_);
    hasher_.AddZeros(take);
    item_.length += take;
    position_ += take;
    count -= take;
    if (position_ == chunk_end) BIM_RETURN_IF_ERROR(FinishChunk());
    if (item_.length >= kMaxZeroRun || position_ == end_) {
      BIM_RETURN_IF_ERROR(Flush(stop));
    }
  }
  return base::OkStatus();
}

Status WriterImpl::FinishChunk() {
  // position_ is the chunk's end.
  const uint64_t last = position_ - 1;
  const uint32_t index = static_cast<uint32_t>(last / ingest_.chunk_size_);
  const Chunk chunk = hasher_.Finish();
  const auto& reference = ingest_.options_.reference;
  if (reference) {
    if (reference->chunks[index] != chunk) {
      position_ = last;
      DropChunk();
      return base::DataLossError("chunk " + std::to_string(index) +
                                 " of the source differs from its manifest");
    }
  }
  item_.done.push_back({index, chunk});
  return base::OkStatus();
}

void WriterImpl::DropChunk() {
  const uint64_t begin = ChunkBegin();
  const uint32_t index = static_cast<uint32_t>(begin / ingest_.chunk_size_);
  hasher_.Reset();
  if (begin >= item_.offset) {
    // All of it is still here.
    item_.length = begin - item_.offset;
  } else {
    std::lock_guard lock(ingest_.mutex_);
    ingest_.dirty_[index] = item_.offset - begin;
    item_.length = 0;
    item_.offset = begin;
  }
  position_ = begin;
}

Status WriterImpl::Flush(std::stop_token stop) {
  if (item_.length == 0) {
    if (item_.block) ingest_.pipeline_.DropBlock(std::move(item_.block));
    item_ = Item();
    item_.offset = position_;
    return base::OkStatus();
  }
  // With a reference a piece is proven by the chunks that it completes: they
  // may have begun in an earlier piece. (Anew: it may have grown, or lost
  // bytes, since it was refused.)
  item_.ready = {};
  if (ingest_.options_.reference) {
    const uint64_t size = ingest_.chunk_size_;
    item_.proven = item_.offset % size == 0 &&
                   (position_ % size == 0 || position_ == ingest_.Limit());
    if (!item_.proven && !item_.done.empty()) {
      item_.ready = {item_.done.front().index * size,
                     std::min(ingest_.Limit(),
                              (item_.done.back().index + uint64_t{1}) * size)};
    }
  }
  // A refused push (stopped) keeps the block: its bytes count as given.
  Item item = item_;
  BIM_RETURN_IF_ERROR(ingest_.pipeline_.Push(std::move(item), stop));
  if (item_.block) ingest_.pipeline_.DropBlock(std::move(item_.block));
  item_ = Item();
  item_.offset = position_;
  return base::OkStatus();
}

std::unique_ptr<IngestWriter> IngestImpl::Write(uint64_t begin, uint64_t end) {
  auto writer =
      std::make_unique<WriterImpl>(*this, begin, std::min(end, Limit()));
  pipeline_.Wake();
  pipeline_.AddWriter(1);
  std::lock_guard lock(mutex_);
  BIM_CHECK(loose_.empty());
  ++writers_;
  const uint32_t index = static_cast<uint32_t>(begin / chunk_size_);
  const auto tail = tails_.find(index);
  if (tail != tails_.end()) {
    // They were hashed already: what is in the file stays.
    writer->hasher_ = std::move(tail->second.hasher);
    writer->skip_to_ = tail->second.position;
    tails_.erase(tail);
  }
  return writer;
}

std::vector<io::Extent> IngestImpl::Missing() {
  std::vector<io::Extent> missing;
  if (!begun_) return missing;
  if (!size_) {
    missing.push_back({front_ ? front_->position() : unknown_end_, Limit()});
    return missing;
  }
  (void)pipeline_.AwaitWritten();
  std::lock_guard lock(mutex_);
  if (!loose_.empty()) return given_.Gaps(0, *size_);
  const uint32_t count = ChunkCount(*size_, chunk_size_);
  for (uint32_t i = 0; i < count; ++i) {
    if (pipeline_.HasChunk(i)) continue;
    uint64_t begin = i * chunk_size_;
    const uint64_t end = std::min(*size_, begin + chunk_size_);
    const auto tail = tails_.find(i);
    if (tail != tails_.end()) begin = tail->second.position;
    if (!missing.empty() && missing.back().end == begin) {
      missing.back().end = end;
    } else {
      missing.push_back({begin, end});
    }
  }
  return missing;
}

Status IngestImpl::CheckRoom(uint64_t position, uint64_t end,
                             uint64_t count) const {
  if (count <= end - position) return base::OkStatus();
  if (size_) {
    return base::OutOfRangeError("more bytes came than the " +
                                 std::to_string(*size_) + " announced");
  }
  return base::OutOfRangeError("a file of unknown size may have at most " +
                               std::to_string(end) + " bytes, more came");
}

Status IngestImpl::GiveFront(
    uint64_t count,
    const std::function<Status(IngestWriter&, uint64_t, uint64_t)>& give) {
  BIM_CHECK(begun_);
  pipeline_.Wake();
  front_at_ = position();
  BIM_RETURN_IF_ERROR(CheckRoom(*front_at_, Limit(), count));
  for (uint64_t done = 0; done < count;) {
    const uint64_t at = *front_at_;
    if (!front_ || at == front_end_) {
      front_.reset();
      // What is there already is not given again.
      io::Extent next{Limit(), Limit()};
      for (const io::Extent& range : Missing()) {
        if (range.end <= at) continue;
        next = {std::max(range.begin, at), range.end};
        break;
      }
      const uint64_t skip = std::min(count - done, next.begin - at);
      done += skip;
      *front_at_ += skip;
      if (done == count) break;
      front_ = Write(next.begin, next.end);
      front_end_ = next.end;
      continue;
    }
    const uint64_t take = std::min(count - done, front_end_ - at);
    const Status given = give(*front_, done, take);
    front_at_ = front_->position();
    BIM_RETURN_IF_ERROR(given);
    done += take;
    if (*front_at_ == front_end_) BIM_RETURN_IF_ERROR(front_->Flush({}));
  }
  return base::OkStatus();
}

Status IngestImpl::Append(std::span<const std::byte> data,
                          std::stop_token stop) {
  return GiveFront(data.size(),
                   [&](IngestWriter& writer, uint64_t from, uint64_t count) {
                     return writer.Append(data.subspan(from, count), stop);
                   });
}

Status IngestImpl::AppendZeros(uint64_t count, std::stop_token stop) {
  return GiveFront(count, [&](IngestWriter& writer, uint64_t, uint64_t part) {
    return writer.AppendZeros(part, stop);
  });
}

uint64_t IngestImpl::position() {
  if (!begun_) return 0;
  if (front_at_) return *front_at_;
  if (!size_) return unknown_end_;
  const auto missing = Missing();
  return missing.empty() ? Limit() : missing.front().begin;
}

Status IngestImpl::CloneChunk(uint32_t index, int source,
                              uint64_t source_offset) {
  BIM_CHECK(options_.reference != nullptr);
  const uint64_t begin = uint64_t{index} * chunk_size_;
  const uint64_t end = ChunkEnd(begin);
  bool dirty = false;
  {
    std::lock_guard lock(mutex_);
    BIM_CHECK(loose_.empty());
    dirty = dirty_.count(index) != 0;
  }
  // Dropped bytes may be on their way to the very place.
  if (dirty) BIM_RETURN_IF_ERROR(pipeline_.AwaitWritten());
  struct file_clone_range range = {};
  range.src_fd = source;
  range.src_offset = source_offset;
  range.src_length = end - begin;
  range.dest_offset = begin;
  if (::ioctl(temp_.get(), FICLONERANGE, &range) != 0) {
    const int error = errno;
    if (error == EOPNOTSUPP || error == EXDEV || error == EINVAL ||
        error == ENOTTY || error == EBADF || error == ETXTBSY) {
      return base::UnimplementedError("no reflink between these files");
    }
    return base::ErrnoError(error, "cannot clone a chunk into " + TempPath());
  }
  BIM_FAILPOINT_ERROR("store.ingest.chunk_cloned");
  // The clone cannot change any more: what is read here is what is kept.
  const auto chunk = ReadChunk(begin, end);
  if (!chunk.ok() || options_.reference->chunks[index] != *chunk) {
    std::lock_guard lock(mutex_);
    dirty_.emplace(index, 0);
    return base::DataLossError(
        "chunk " + std::to_string(index) + " of the file that was cloned " +
        (chunk.ok() ? "differs from its manifest"
                    : "cannot be read: " + chunk.status().message()));
  }
  if (dirty) {
    std::lock_guard lock(mutex_);
    pipeline_.Forget(dirty_[index]);
    dirty_.erase(index);
  }
  return pipeline_.Have(index, *chunk, begin, end, true);
}

// ------------------------------------------------- bytes in any order

Status IngestImpl::BeginLoose(uint64_t begin, uint64_t end,
                              std::stop_token stop) {
  BIM_CHECK(begun_ && size_);
  if (stop.stop_requested()) return base::CancelledError("stopped");
  if (begin > end || end > *size_) {
    return base::OutOfRangeError(
        "bytes " + std::to_string(begin) + " to " + std::to_string(end) +
        " were given of a file of " + std::to_string(*size_));
  }
  if (begin % 512 != 0 || end % 512 != 0) {
    return base::InvalidArgumentError("bytes " + std::to_string(begin) +
                                      " to " + std::to_string(end) +
                                      " are no multiples of 512");
  }
  pipeline_.Wake();
  BIM_RETURN_IF_ERROR(pipeline_.failure());
  std::lock_guard lock(mutex_);
  if (loose_.empty()) {
    BIM_CHECK(writers_ == 0 && tails_.empty() && !front_);
    loose_.resize(ChunkCount(*size_, chunk_size_));
    for (uint32_t i = 0; i < loose_.size(); ++i) {
      if (!pipeline_.HasChunk(i)) continue;
      loose_[i].taken = true;
      (void)given_.Add(i * chunk_size_, ChunkEnd(i * chunk_size_));
    }
  }
  if (given_.pieces() >= kMaxPieces && !given_.Joins(begin, end)) {
    return base::ResourceExhaustedError(
        "what was given of " + TempPath() + " is in more than " +
        std::to_string(kMaxPieces) + " separate pieces");
  }
  return base::OkStatus();
}

bool IngestImpl::IsDirty(const LooseChunk& chunk, uint64_t begin,
                         uint64_t end) const {
  // What was written there was given, or somebody is at it.
  return chunk.HasData(begin, end) &&
         (chunk.stale || chunk.writers > 0 || given_.Overlaps(begin, end));
}

bool IngestImpl::Given(LooseChunk& chunk, uint64_t begin, uint64_t end) {
  pipeline_.Count(given_.Add(begin, end));
  const uint64_t chunk_begin = begin / chunk_size_ * chunk_size_;
  if (chunk.taken || chunk.writers > 0 ||
      !given_.Contains(chunk_begin, ChunkEnd(chunk_begin))) {
    return false;
  }
  chunk.taken = true;
  return true;
}

bool IngestImpl::Leave(uint64_t begin, uint64_t end) {
  std::lock_guard lock(mutex_);
  LooseChunk& chunk = loose_[begin / chunk_size_];
  --chunk.writers;
  return Given(chunk, begin, end);
}

Result<std::optional<Digest>> IngestImpl::DigestAt(uint64_t begin, uint64_t end,
                                                   std::stop_token stop) {
  if (!begun_ || !size_ || begin >= end || end > *size_) {
    return std::optional<Digest>();
  }
  for (uint64_t at = begin; at < end; at = ChunkEnd(at)) {
    if (!pipeline_.HasChunk(static_cast<uint32_t>(at / chunk_size_))) {
      return std::optional<Digest>();
    }
  }
  hash::Hasher hasher(DigestAlgorithm::kSha512);
  std::vector<std::byte> buffer(
      static_cast<size_t>(std::min<uint64_t>(end - begin, kBlockSize)));
  for (uint64_t at = begin; at < end;) {
    if (stop.stop_requested()) return base::CancelledError("stopped");
    const size_t want =
        static_cast<size_t>(std::min<uint64_t>(buffer.size(), end - at));
    BIM_ASSIGN_OR_RETURN(
        const size_t got,
        io::PreadFull(temp_.get(), buffer.data(), want, at, TempPath()));
    if (got != want) return std::optional<Digest>();
    hasher.Update(std::span(buffer).first(want));
    at += want;
  }
  return std::optional(hasher.Finish());
}

Status IngestImpl::WriteAt(uint64_t offset, std::span<const std::byte> data,
                           std::stop_token stop) {
  BIM_RETURN_IF_ERROR(BeginLoose(
      offset,
      data.size() > UINT64_MAX - offset ? UINT64_MAX : offset + data.size(),
      stop));
  // Zeros alone never need the room of data.
  if (io::IsZero(data)) return HoleAt(offset, offset + data.size(), stop);
  while (!data.empty()) {
    if (stop.stop_requested()) return base::CancelledError("stopped");
    BIM_ASSIGN_OR_RETURN(size_t count, WriteChunks(offset, data, stop));
    if (count == 0) {
      count = static_cast<size_t>(
          std::min<uint64_t>(data.size(), ChunkEnd(offset) - offset));
      BIM_RETURN_IF_ERROR(WritePiece(offset, data.first(count)));
    }
    data = data.subspan(count);
    offset += count;
  }
  return base::OkStatus();
}

Result<size_t> IngestImpl::WriteChunks(uint64_t offset,
                                       std::span<const std::byte> data,
                                       const std::stop_token& stop) {
  if (offset % chunk_size_ != 0 || chunk_size_ > kBlockSize ||
      ChunkEnd(offset) - offset > data.size()) {
    return 0;
  }
  // With a reference one by one: each may be refused.
  const uint64_t limit = options_.reference
                             ? ChunkEnd(offset)
                             : std::min(offset + data.size(),
                                        (offset / kBlockSize + 1) * kBlockSize);
  pipeline_.AwaitTurn(offset);
  // Before the claim: what is claimed is handed on, whatever else happens.
  Item item;
  BIM_ASSIGN_OR_RETURN(item.block, pipeline_.TakeBlock(stop));
  item.offset = offset;
  uint64_t end = offset;
  {
    std::lock_guard lock(mutex_);
    while (end < limit && ChunkEnd(end) <= limit) {
      LooseChunk& chunk = loose_[end / chunk_size_];
      if (chunk.taken || chunk.writers > 0 || chunk.HasData(0, UINT64_MAX) ||
          given_.Overlaps(end, ChunkEnd(end))) {
        break;
      }
      chunk.taken = chunk.coming = true;
      end = ChunkEnd(end);
    }
    // (The write stage counts them as stored.)
    (void)given_.Add(offset, end);
  }
  if (end == offset) {
    pipeline_.DropBlock(std::move(item.block));
    return 0;
  }
  Status status = WriteClaimed(std::move(item), data.first(end - offset));
  std::lock_guard lock(mutex_);
  for (uint64_t at = offset; at < end; at = ChunkEnd(at)) {
    LooseChunk& chunk = loose_[at / chunk_size_];
    chunk.coming = false;
    if (status.ok()) continue;
    // Refused by the reference; or the disk failed, and nothing counts.
    chunk.taken = false;
    (void)given_.Remove(at, ChunkEnd(at));
  }
  came_.notify_all();
  if (!status.ok()) return status;
  return static_cast<size_t>(end - offset);
}

Status IngestImpl::WriteClaimed(Item item, std::span<const std::byte> data) {
  const uint64_t end = item.offset + data.size();
  ChunkHasher hasher;
  for (uint64_t at = item.offset; at < end; at = ChunkEnd(at)) {
    const uint32_t index = static_cast<uint32_t>(at / chunk_size_);
    hasher.Add(data.subspan(at - item.offset, ChunkEnd(at) - at));
    const Chunk chunk = hasher.Finish();
    if (options_.reference && options_.reference->chunks[index] != chunk) {
      pipeline_.DropBlock(std::move(item.block));
      return Differs(index);
    }
    item.done.push_back({index, chunk});
  }
  std::memcpy(item.block->At(item.offset), data.data(), data.size());
  item.length = data.size();
  // Not stopped: what was claimed must come.
  const Status pushed = pipeline_.Push(item, {});
  pipeline_.DropBlock(std::move(item.block));
  return pushed.ok() ? pipeline_.AwaitWritten() : pushed;
}

Status IngestImpl::WritePiece(uint64_t offset,
                              std::span<const std::byte> data) {
  const uint64_t end = offset + data.size();
  const uint32_t index = static_cast<uint32_t>(offset / chunk_size_);
  bool dirty = false;
  bool taken = false;
  {
    std::lock_guard lock(mutex_);
    LooseChunk& chunk = loose_[index];
    taken = chunk.taken;
    if (!taken) {
      dirty = IsDirty(chunk, offset, end);
      ++chunk.writers;
      chunk.data_begin = std::min(chunk.data_begin, offset);
      chunk.data_end = std::max(chunk.data_end, end);
    }
  }
  if (taken) {
    AwaitComing(offset, end);
    return Compare(offset, data);
  }
  const auto write = [&]() -> Status {
    BIM_FAILPOINT_ERROR("store.ingest.write");
    // By the page cache: it is read back soon.
    io::SparseFile file{temp_.get(), -1};
    return io::WriteSparse(file, data, offset, dirty);
  };
  if (Status written = write(); !written.ok()) {
    written = written.WithContext(TempPath());
    // What is in the file now is not known. The chunk can never be taken.
    pipeline_.Fail(written);
    return written;
  }
  return Leave(offset, end) ? TakeChunk(index) : base::OkStatus();
}

Status IngestImpl::HoleAt(uint64_t begin, uint64_t end, std::stop_token stop) {
  BIM_RETURN_IF_ERROR(BeginLoose(begin, end, stop));
  std::vector<io::Extent> compare;  // in chunks that are taken
  std::vector<io::Extent> punch;    // each in one chunk
  std::vector<uint32_t> complete;
  std::vector<io::Extent> hollow;  // chunks that are nothing but holes
  const auto add = [](std::vector<io::Extent>& ranges, uint64_t from,
                      uint64_t to) {
    if (!ranges.empty() && ranges.back().end == from) {
      ranges.back().end = to;
    } else {
      ranges.push_back({from, to});
    }
  };
  {
    std::lock_guard lock(mutex_);
    for (uint64_t at = begin; at < end;) {
      const uint32_t index = static_cast<uint32_t>(at / chunk_size_);
      const uint64_t to = std::min(end, ChunkEnd(at));
      LooseChunk& chunk = loose_[index];
      if (chunk.taken) {
        add(compare, at, to);
      } else if (IsDirty(chunk, at, to)) {
        ++chunk.writers;
        punch.push_back({at, to});
      } else if (Given(chunk, at, to)) {
        if (chunk.HasData(0, UINT64_MAX)) {
          complete.push_back(index);
        } else {
          add(hollow, index * chunk_size_, ChunkEnd(at));
        }
      }
      at = to;
    }
  }
  // Chunks that are this call's to take are taken, whatever else fails.
  Status status;
  const auto keep = [&status](Status next) {
    if (status.ok()) status = std::move(next);
  };
  for (const io::Extent& run : hollow) keep(TakeHollow(run));
  for (const uint32_t index : complete) keep(TakeChunk(index));
  for (const io::Extent& range : punch) {
    if (Status punched = io::MakeHole(temp_.get(), range.begin, range.end);
        !punched.ok()) {
      punched = punched.WithContext(TempPath());
      pipeline_.Fail(punched);
      return punched;
    }
    if (Leave(range.begin, range.end)) {
      keep(TakeChunk(static_cast<uint32_t>(range.begin / chunk_size_)));
    }
  }
  for (const io::Extent& range : compare) {
    if (!status.ok()) break;
    keep(CompareZeros(range.begin, range.end, stop));
  }
  return status;
}

Status IngestImpl::TakeChunk(uint32_t index) {
  const uint64_t begin = uint64_t{index} * chunk_size_;
  const auto chunk = ReadChunk(begin, ChunkEnd(begin));
  if (!chunk.ok()) {
    pipeline_.Fail(chunk.status());
    return chunk.status();
  }
  return TakeChunk(index, *chunk);
}

Status IngestImpl::TakeChunk(uint32_t index, const Chunk& chunk) {
  const uint64_t begin = uint64_t{index} * chunk_size_;
  const uint64_t end = ChunkEnd(begin);
  if (options_.reference && options_.reference->chunks[index] != chunk) {
    std::lock_guard lock(mutex_);
    LooseChunk& dropped = loose_[index];
    dropped.taken = false;
    dropped.stale = true;
    dropped.data_begin = begin;
    dropped.data_end = end;
    pipeline_.Forget(given_.Remove(begin, end));
    return Differs(index);
  }
  Status have =
      pipeline_.Have(index, chunk, begin, end, true, /*counted=*/end - begin);
  if (!have.ok()) pipeline_.Fail(have);
  return have;
}

Status IngestImpl::TakeHollow(const io::Extent& chunks) {
  const uint32_t first = static_cast<uint32_t>(chunks.begin / chunk_size_);
  const uint32_t count = ChunkCount(chunks.end - chunks.begin, chunk_size_);
  if (options_.reference) {
    // Its zeros were there from the begin: these are to be something else.
    Chunk zero;
    zero.zero = true;
    Status status;
    for (uint32_t index = first; index < first + count; ++index) {
      Status taken = TakeChunk(index, zero);
      if (status.ok()) status = std::move(taken);
    }
    return status;
  }
  Status have = pipeline_.HaveZeros(first, count, chunks.begin, chunks.end);
  if (!have.ok()) pipeline_.Fail(have);
  return have;
}

void IngestImpl::AwaitComing(uint64_t begin, uint64_t end) {
  std::unique_lock lock(mutex_);
  for (uint64_t at = begin; at < end; at = ChunkEnd(at)) {
    const LooseChunk& chunk = loose_[at / chunk_size_];
    came_.wait(lock, [&] { return !chunk.coming; });
  }
}

Status IngestImpl::Compare(uint64_t offset, std::span<const std::byte> data) {
  std::vector<std::byte> buffer(std::min<size_t>(data.size(), kBlockSize));
  while (!data.empty()) {
    const size_t want = std::min(data.size(), buffer.size());
    BIM_ASSIGN_OR_RETURN(
        const size_t got,
        io::PreadFull(temp_.get(), buffer.data(), want, offset, TempPath()));
    if (got != want || std::memcmp(buffer.data(), data.data(), want) != 0) {
      return base::DataLossError(
          "bytes from " + std::to_string(offset) +
          " on were given again, and differ from those given before");
    }
    data = data.subspan(want);
    offset += want;
  }
  return base::OkStatus();
}

Status IngestImpl::CompareZeros(uint64_t begin, uint64_t end,
                                std::stop_token stop) {
  AwaitComing(begin, end);
  const std::vector<std::byte> zeros(kBlockSize / 4);
  while (begin < end) {
    BIM_ASSIGN_OR_RETURN(const io::Extent data,
                         io::NextData(temp_.get(), begin, end));
    for (begin = data.begin; begin < data.end;) {
      if (stop.stop_requested()) return base::CancelledError("stopped");
      const size_t count = static_cast<size_t>(
          std::min<uint64_t>(zeros.size(), data.end - begin));
      BIM_RETURN_IF_ERROR(Compare(begin, std::span(zeros).first(count)));
      begin += count;
    }
  }
  return base::OkStatus();
}

// ------------------------------------------------- beginning, restoring

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
}

void IngestImpl::StartOver(uint64_t chunk_size, std::optional<uint64_t> size) {
  // What the stages have is of the old content: a failed one skips it.
  pipeline_.Fail(base::CancelledError("started over"));
  front_.reset();
  BIM_CHECK(writers_ == 0);
  pipeline_.Stop();
  tails_.clear();
  dirty_.clear();
  given_.Clear();
  loose_.clear();
  unknown_end_ = 0;
  front_at_.reset();
  size_ = size;
  total_ = size.value_or(0);
  chunk_size_ = chunk_size;
  pipeline_.Start({temp_.get(), direct_.get()}, -1, chunk_size,
                  size ? ChunkCount(*size, chunk_size) : 0);
}

Status IngestImpl::HaveZeroChunks() {
  if (!options_.reference) return base::OkStatus();
  const auto& chunks = options_.reference->chunks;
  for (uint32_t i = 0; i < chunks.size(); ++i) {
    if (!chunks[i].zero || pipeline_.HasChunk(i)) continue;
    const uint64_t begin = uint64_t{i} * chunk_size_;
    BIM_RETURN_IF_ERROR(
        pipeline_.Have(i, chunks[i], begin, ChunkEnd(begin), false));
  }
  return base::OkStatus();
}

Result<Chunk> IngestImpl::ReadChunk(uint64_t begin, uint64_t end) {
  ChunkHasher hasher;
  std::vector<std::byte> buffer(
      static_cast<size_t>(std::min<uint64_t>(end - begin, kBlockSize)));
  for (uint64_t at = begin; at < end;) {
    const size_t want =
        static_cast<size_t>(std::min<uint64_t>(buffer.size(), end - at));
    BIM_ASSIGN_OR_RETURN(
        const size_t got,
        io::PreadFull(temp_.get(), buffer.data(), want, at, TempPath()));
    // Cut off: what is missing reads as zeros and differs from its digest.
    std::fill(buffer.begin() + static_cast<ptrdiff_t>(got),
              buffer.begin() + static_cast<ptrdiff_t>(want), std::byte{0});
    hasher.Add(std::span(buffer).first(want));
    at += want;
  }
  return hasher.Finish();
}

Status IngestImpl::RestoreChunks(std::string& journal, std::stop_token stop) {
  const auto& reference = options_.reference;
  size_t bad = 0;
  for (uint32_t i = 0; i < partial_.chunks.size(); ++i) {
    if (!partial_.chunks[i]) continue;
    if (stop.stop_requested()) return base::CancelledError("stopped");
    const Chunk& known = *partial_.chunks[i];
    if (reference && reference->chunks[i] != known) continue;
    const uint64_t begin = uint64_t{i} * chunk_size_;
    const uint64_t end = ChunkEnd(begin);
    BIM_ASSIGN_OR_RETURN(const Chunk chunk, ReadChunk(begin, end));
    if (chunk != known) {
      ++bad;
      continue;
    }
    BIM_RETURN_IF_ERROR(pipeline_.Have(i, chunk, begin, end, false));
    journal += EncodeJournalEntry(i, chunk);
  }
  if (bad > 0) {
    BIM_LOG_WARN("{}: {} chunks differ from its journal and are dropped",
                 TempPath(), bad);
  }
  return base::OkStatus();
}

Status IngestImpl::OpenJournal(const std::string& text) {
  const io::Dir& root = disk_->root();
  BIM_RETURN_IF_ERROR(root.ReplaceFile(RecordFile(key_), text));
  BIM_ASSIGN_OR_RETURN(journal_,
                       root.OpenFile(RecordFile(key_), O_WRONLY | O_APPEND));
  pipeline_.SetJournal(journal_.get());
  return base::OkStatus();
}

Status IngestImpl::Restore(std::stop_token stop) {
  Status restored = DoRestore(stop);
  // What lies there stays as it is, to be restored again.
  if (!restored.ok()) begun_ = false;
  return restored;
}

Status IngestImpl::DoRestore(std::stop_token stop) {
  if (partial_.header.validator.empty()) return base::OkStatus();
  const auto& reference = options_.reference;
  if (reference && (partial_.header.size != reference->stamp.size ||
                    partial_.header.chunk_size != reference->chunk_size)) {
    return base::OkStatus();
  }
  if (std::none_of(partial_.chunks.begin(), partial_.chunks.end(),
                   [](const auto& chunk) { return chunk.has_value(); })) {
    return base::OkStatus();
  }
  const io::Dir& root = disk_->root();
  BIM_ASSIGN_OR_RETURN(temp_, root.OpenFile(TempFile(key_), O_RDWR));
  OpenDirect();
  StartOver(partial_.header.chunk_size, partial_.header.size);
  begun_ = true;
  // What is read again is what the disk has: a write that failed behind an
  // earlier process left the page cache with bytes that never reached it.
  if (::fdatasync(temp_.get()) != 0) {
    return base::ErrnoError(errno, "cannot sync " + TempPath());
  }
  (void)::posix_fadvise(temp_.get(), 0, 0, POSIX_FADV_DONTNEED);
  JournalHeader header = partial_.header;
  // With a reference the content is what that says, whatever it was before.
  if (reference) header.validator = "sha512:" + reference->sha512.Hex();
  std::string journal = EncodeJournalHeader(header);
  BIM_RETURN_IF_ERROR(RestoreChunks(journal, stop));
  restored_ = pipeline_.stored_bytes() > 0;
  // What lies elsewhere is not vouched for: gone, so that zeros can stay holes.
  if (::ftruncate(temp_.get(), static_cast<off_t>(*size_)) != 0) {
    return base::ErrnoError(errno, "cannot set the length of " + TempPath());
  }
  for (const io::Extent& missing : Missing()) {
    BIM_RETURN_IF_ERROR(io::MakeHole(temp_.get(), missing.begin, missing.end)
                            .WithContext(TempPath()));
  }
  BIM_RETURN_IF_ERROR(HaveZeroChunks());
  BIM_RETURN_IF_ERROR(OpenJournal(journal));
  validator_ = header.validator;
  partial_ = Journal();
  return base::OkStatus();
}

Status IngestImpl::Begin(std::optional<uint64_t> size, std::string validator) {
  if (size && (*size == 0 || *size % 512 != 0)) {
    return base::InvalidArgumentError(*size == 0
                                          ? "the file is empty"
                                          : "size " + std::to_string(*size) +
                                                " is not a multiple of 512");
  }
  const auto& reference = options_.reference;
  if (reference && size != reference->stamp.size) {
    return base::InvalidArgumentError("the size is not the manifest's");
  }
  partial_ = Journal();
  restored_ = false;
  begun_ = false;
  pipeline_.Fail(base::CancelledError("started over"));
  front_.reset();
  pipeline_.Stop();
  journal_.Reset();
  const io::Dir& root = disk_->root();
  BIM_RETURN_IF_ERROR(RemovePartial(*disk_, key_));
  BIM_ASSIGN_OR_RETURN(
      temp_, root.OpenFile(TempFile(key_), O_RDWR | O_CREAT | O_EXCL, 0600));
  OpenDirect();
  BIM_FAILPOINT_ERROR("store.ingest.temp_made");
  if (size && ::ftruncate(temp_.get(), static_cast<off_t>(*size)) != 0) {
    return base::ErrnoError(errno, "cannot make " + TempPath() + " " +
                                       std::to_string(*size) + " bytes long");
  }
  StartOver(reference ? reference->chunk_size
            : size    ? ChunkSizeFor(*size)
                      : kUnknownSizeChunk,
            size);
  validator_ = std::move(validator);
  // A ready file that is being replaced keeps its record until the new one is
  // sealed.
  const bool has_record = root.Stat(RecordFile(key_)).ok();
  if (size && !validator_.empty() && !has_record) {
    struct stat st = {};
    if (::fstat(temp_.get(), &st) != 0) {
      return base::ErrnoError(errno, "cannot stat " + TempPath());
    }
    BIM_RETURN_IF_ERROR(OpenJournal(EncodeJournalHeader(
        {key_, *size, chunk_size_, validator_, st.st_ino})));
    BIM_FAILPOINT("store.journal.made");
  }
  begun_ = true;
  return HaveZeroChunks();
}

// --------------------------------------------------------------- ending

// Only now is the length known: the same rules.
Status IngestImpl::SetFinalSize() {
  const uint64_t end = position();
  if (end == 0 || end % 512 != 0) {
    const Status wrong = base::FailedPreconditionError(
        end == 0 ? "the file is empty"
                 : "size " + std::to_string(end) + " is not a multiple of 512");
    (void)Discard();
    return wrong;
  }
  front_.reset();
  BIM_RETURN_IF_ERROR(pipeline_.AwaitWritten());
  if (::ftruncate(temp_.get(), static_cast<off_t>(end)) != 0) {
    return base::ErrnoError(errno, "cannot set the length of " + TempPath());
  }
  if (end % chunk_size_ != 0) {
    const uint32_t index = static_cast<uint32_t>(end / chunk_size_);
    std::lock_guard lock(mutex_);
    const auto tail = tails_.find(index);
    BIM_CHECK(tail != tails_.end());
    pipeline_.AddChunk({index, tail->second.hasher.Finish()});
    tails_.erase(tail);
  }
  size_ = end;
  return base::OkStatus();
}

Status IngestImpl::CheckDigests(const ImageRecord& record) const {
  const auto compare = [](const std::optional<Digest>& expected,
                          const std::optional<Digest>& found) -> Status {
    if (!expected || (found && *expected == *found)) return base::OkStatus();
    return base::FailedPreconditionError(
        "wrong checksum: expected " +
        std::string(base::DigestName(expected->algorithm())) + " " +
        expected->Hex() + ", found " + (found ? found->Hex() : "none"));
  };
  if (options_.reference && options_.reference->sha512 != record.sha512) {
    return base::DataLossError(
        "every chunk is as the manifest says, but the whole is not: expected "
        "SHA-512 " +
        options_.reference->sha512.Hex() + ", found " + record.sha512.Hex());
  }
  BIM_RETURN_IF_ERROR(compare(options_.expect_sha512, record.sha512));
  if (hash_whole_) BIM_RETURN_IF_ERROR(compare(told_sha512_, record.sha512));
  return compare(options_.expect_sha256, record.sha256);
}

Result<ImageRecord> IngestImpl::Commit(std::stop_token stop) {
  BIM_CHECK(begun_);
  pipeline_.Wake();
  if (size_) {
    if (front_) BIM_RETURN_IF_ERROR(front_->Flush(stop));
    front_.reset();
    BIM_CHECK(writers_ == 0);
    BIM_RETURN_IF_ERROR(pipeline_.AwaitWritten());
    uint64_t missing = 0;
    for (const io::Extent& range : Missing())
      missing += range.end - range.begin;
    if (missing > 0) {
      return base::UnavailableError("only " + std::to_string(*size_ - missing) +
                                    " of " + std::to_string(*size_) +
                                    " bytes came");
    }
  } else {
    BIM_RETURN_IF_ERROR(SetFinalSize());
  }
  // fsync while the hash of the last blocks is still being made.
  BIM_FAILPOINT_ERROR("store.commit.before_fsync");
  if (::fsync(temp_.get()) != 0) {
    return base::ErrnoError(errno, "cannot sync " + TempPath());
  }
  BIM_FAILPOINT("store.commit.after_fsync");
  BIM_RETURN_IF_ERROR(pipeline_.AwaitHashed(*size_, stop));
  // No stage, and no journal entry, may come between the seal and the rename.
  pipeline_.EndSync();
  pipeline_.Stop();
  // A sync that ran until now may have failed.
  BIM_RETURN_IF_ERROR(pipeline_.failure());

  ImageRecord record;
  record.key = key_;
  record.chunk_size = chunk_size_;
  record.chunks = pipeline_.TakeChunks();
  record.origin = (restored_ ? "resumed " : "") + options_.origin;
  record.sha512_pending = options_.sha512_pending;
  BIM_CHECK(record.chunks.size() == ChunkCount(*size_, chunk_size_));
  if (hash_whole_) {
    record.sha512 = pipeline_.FinishSha512();
    record.sha256 = pipeline_.FinishSha256();
  } else {
    record.sha512 = options_.reference->sha512;
    record.sha256 = options_.reference->sha256;
  }
  if (Status checked = CheckDigests(record); !checked.ok()) {
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
  front_.reset();
  BIM_CHECK(writers_ == 0);
  begun_ = false;
  const bool failed = !pipeline_.AwaitWritten().ok();
  pipeline_.Stop();
  if (!journal_) {
    // Nothing can continue it.
    (void)RemoveOwn();
    return;
  }
  if (failed) return;
  if (Status synced = pipeline_.SyncNow(); !synced.ok()) {
    BIM_LOG_WARN("{}: the last bytes cannot be kept: {}", TempPath(),
                 synced.message());
  }
}

Status IngestImpl::Discard() {
  pipeline_.Fail(base::CancelledError("discarded"));
  front_.reset();
  BIM_CHECK(writers_ == 0);
  pipeline_.Stop();
  begun_ = false;
  Status removed = RemoveOwn();
  temp_.Reset();
  direct_.Reset();
  journal_.Reset();
  partial_ = Journal();
  tails_.clear();
  dirty_.clear();
  given_.Clear();
  loose_.clear();
  return removed;
}

Status IngestImpl::RemoveOwn() {
  const auto there = disk_->root().Stat(TempFile(key_));
  struct stat own = {};
  if (temp_ && there.ok() && ::fstat(temp_.get(), &own) == 0 &&
      (there->st_ino != own.st_ino || there->st_dev != own.st_dev)) {
    return base::OkStatus();
  }
  return RemovePartial(*disk_, key_);
}

}  // namespace

Result<std::unique_ptr<Ingest>> Ingest::Open(std::shared_ptr<const Disk> disk,
                                             ImageKey key,
                                             IngestOptions options) {
  BIM_CHECK(!options.trust_reference || options.reference);
  if (options.reference && options.reference->chunks.empty()) {
    return base::InvalidArgumentError("the reference has no chunks");
  }
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
