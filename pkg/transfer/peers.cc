#include "pkg/transfer/peers.h"

#include <algorithm>
#include <condition_variable>
#include <set>
#include <utility>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/base/names.h"
#include "pkg/http/client.h"
#include "pkg/io/dir.h"
#include "pkg/transfer/delta.h"
#include "pkg/transfer/lanes.h"
#include "pkg/transfer/peer_source.h"
#include "pkg/transfer/range_queue.h"

namespace bim::transfer {
namespace {

using base::Code;
using base::Result;
using base::Status;
using std::chrono::milliseconds;

constexpr milliseconds kMaxPenalty{600'000};
constexpr size_t kMaxBook = 1024;
// A peer that is busy is waited for as long as nothing else can be done, for so
// long without a byte.
constexpr std::chrono::seconds kBusyFor{60};
constexpr milliseconds kBusyPause{500};
// So long is looked for one that has the image; who did not answer is asked
// last the next time.
constexpr std::chrono::seconds kFindFor{60};
// A lane slower than the best one by this factor is given up when another peer
// is free.
constexpr double kTooSlow = 8;

// A body into memory, bounded.
class TextSink : public http::Sink {
 public:
  explicit TextSink(size_t max) : max_(max) {}
  Status OnHead(const http::ResponseHead& head) override {
    type_ = head.content_type;
    if (head.content_length.value_or(0) > max_) return TooLong();
    text_.reserve(static_cast<size_t>(head.content_length.value_or(0)));
    return base::OkStatus();
  }
  Status OnData(std::span<const std::byte> data) override {
    if (data.size() > max_ - text_.size()) return TooLong();
    text_.append(reinterpret_cast<const char*>(data.data()), data.size());
    return base::OkStatus();
  }
  std::string& text() { return text_; }

 private:
  Status TooLong() const {
    return base::DataLossError("its manifest is longer than " +
                               std::to_string(max_) + " bytes");
  }
  const size_t max_;
  std::string type_;
  std::string text_;
};

// The peer's manifest, checked against what is expected. NOT_FOUND and
// UNAVAILABLE are no fault of the peer.
Result<store::ImageRecord> GetManifest(const PeerInfo& peer,
                                       const PeerQuery& query,
                                       const Options& options,
                                       std::stop_token stop) {
  http::GetRequest request;
  request.url = ImageUrl(peer, query.key) + "manifest";
  request.proxy = "none";
  request.max_redirects = 0;
  request.deadlines = DeadlinesOf(options.peers);
  // Others are told theirs in a moment: it does not wait for a turn for long.
  request.deadlines.first_byte = options.peers.stall;
  TextSink sink(store::kMaxManifest);
  const http::Outcome got = http::Get(request, sink, stop);
  if (got.http_status == 404) {
    return base::NotFoundError("cannot find the image");
  }
  if (got.http_status == 409) {
    return base::UnavailableError("the image is not ready there");
  }
  if (got.failure != http::Failure::kNone) return got.status;
  BIM_ASSIGN_OR_RETURN(store::ImageRecord record,
                       store::DecodeManifest(std::move(sink.text())));
  if (record.key != query.key) {
    return base::DataLossError(
        "its manifest is that of image '" + base::Printable(record.key.name) +
        "' with uuid '" + base::Printable(record.key.uuid) + "'");
  }
  if (query.sha512 && *query.sha512 != record.sha512) {
    return base::FailedPreconditionError(
        "it has another image: expected SHA-512 " + query.sha512->Hex() +
        ", found " + record.sha512.Hex());
  }
  if (query.sha256 && record.sha256 && *query.sha256 != *record.sha256) {
    return base::FailedPreconditionError(
        "it has another image: expected SHA-256 " + query.sha256->Hex() +
        ", found " + record.sha256->Hex());
  }
  const uint64_t size = record.stamp.size;
  if (query.size != 0 && query.size != size) {
    return base::FailedPreconditionError(
        "it has another image: expected " + std::to_string(query.size) +
        " bytes, found " + std::to_string(size));
  }
  if (query.max_size != 0 && size > query.max_size) {
    return base::FailedPreconditionError(
        "its image has " + std::to_string(size) + " bytes, at most " +
        std::to_string(query.max_size) +
        " are allowed (sources.max_image_size)");
  }
  return record;
}

bool IsTrusted(const std::string& ip, const PeerOptions& options) {
  return std::any_of(
      options.trusted.begin(), options.trusted.end(),
      [&](const Network& network) { return network.Contains(ip); });
}

// How bad a failure is: what was sent is wrong, or it cannot be had.
PeerBook::Fault FaultOf(const Status& status) {
  return status.code() == Code::kDataLoss ? PeerBook::Fault::kHard
                                          : PeerBook::Fault::kSoft;
}

// The peers of one transfer, shared by its lanes.
class PeerLanes : public LaneSources {
 public:
  PeerLanes(PeerResolver& resolver, PeerBook& book, const FoundPeers& found,
            const PeerPullSpec& spec, const Options& options,
            std::stop_token stop)
      : resolver_(resolver),
        book_(book),
        manifest_(*found.manifest),
        manifest_from_(found.manifest_from),
        spec_(spec),
        options_(options.peers),
        stop_(std::move(stop)),
        lanes_(std::max<size_t>(1, spec.pull.connections)) {
    for (const Peer& peer : found.peers) peers_.push_back({peer, {}});
  }

  Source* Open(size_t lane) override {
    while (!stop_.stop_requested()) {
      size_t chosen = 0;
      {
        std::lock_guard lock(mutex_);
        LaneState& state = lanes_[lane];
        const std::optional<size_t> best = Choose(state.peer);
        if (!best) return nullptr;
        chosen = *best;
        if (state.source && state.peer == chosen) return state.source.get();
        Leave(state);
        state.peer = chosen;
        ++peers_[chosen].lanes;
        if (peers_[chosen].peer.info) return Connect(state);
      }
      // Not under the lock: it may take a while.
      const std::string& address = peers_[chosen].peer.address;
      auto info = resolver_.Resolve(address, options_.connect, stop_);
      std::lock_guard lock(mutex_);
      LaneState& state = lanes_[lane];
      if (info.ok() && info->api_version < kManifestApiVersion) {
        info = base::FailedPreconditionError(
            "it speaks API version " + std::to_string(info->api_version) +
            ", chunks are told from version " +
            std::to_string(kManifestApiVersion) + " on");
      }
      if (info.ok()) {
        peers_[chosen].peer.info = *std::move(info);
        return Connect(state);
      }
      GiveUp(chosen, info.status());
      Leave(state);
    }
    return nullptr;
  }

  void Close(size_t lane) override {
    std::lock_guard lock(mutex_);
    Leave(lanes_[lane]);
  }

  Next OnFailure(size_t lane, const Outcome& outcome, bool others,
                 std::stop_token stop) override {
    std::unique_lock lock(mutex_);
    LaneState& state = lanes_[lane];
    if (!state.peer) return others ? Next::kEnd : Next::kFail;
    const size_t failed = *state.peer;
    const bool busy = outcome.retry_after.has_value();
    // A daemon that is replaced ends its connections, and its successor listens
    // at the same address.
    if (!busy && outcome.status.code() == Code::kUnavailable &&
        !std::exchange(state.asked_again, true)) {
      return Next::kAgain;
    }
    if (!busy) {
      GiveUp(failed, outcome.status);
      Leave(state);
      if (Choose({})) return Next::kAgain;
      return others ? Next::kEnd : Next::kFail;
    }
    // It has more readers than it takes: another one, or again in a moment.
    const auto now = PeerBook::Clock::now();
    peers_[failed].busy_until = now + kBusyPause;
    if (const auto other = Choose({});
        other && peers_[*other].busy_until <= now) {
      Leave(state);
      return Next::kAgain;
    }
    if (others) return Next::kEnd;
    if (now - last_bytes_ > kBusyFor) {
      GiveUp(failed, outcome.status);
      return Next::kFail;
    }
    std::condition_variable_any wake;
    wake.wait_for(lock, stop, kBusyPause, [] { return false; });
    return Next::kAgain;
  }

  void OnSuccess(size_t lane, uint64_t bytes, double) override {
    std::lock_guard lock(mutex_);
    last_bytes_ = PeerBook::Clock::now();
    if (bytes == 0 || !lanes_[lane].peer) return;
    lanes_[lane].asked_again = false;
    PeerState& peer = peers_[*lanes_[lane].peer];
    if (!peer.proven) book_.Forgive(peer.peer.address);
    peer.proven = true;
  }

  std::optional<size_t> TooSlow(const std::vector<double>& rates) override {
    std::lock_guard lock(mutex_);
    const double best = *std::max_element(rates.begin(), rates.end());
    for (size_t lane = 0; lane < rates.size() && lane < lanes_.size(); ++lane) {
      if (rates[lane] < 0 || rates[lane] * kTooSlow >= best) continue;
      if (!lanes_[lane].peer) continue;
      // Only for another one.
      const size_t slow = *lanes_[lane].peer;
      peers_[slow].avoid = true;
      const bool other = Choose({}).has_value();
      peers_[slow].avoid = false;
      if (other) return lane;
    }
    return std::nullopt;
  }

  // Why no peer is left.
  std::string Complaints() const {
    std::lock_guard lock(mutex_);
    std::string text;
    for (const PeerState& peer : peers_) {
      if (!peer.failure) continue;
      text += (text.empty() ? "" : "; ") + peer.peer.address + ": " +
              peer.failure->message();
    }
    return text;
  }

 private:
  struct PeerState {
    Peer peer;
    std::optional<Status> failure;  // not used any more
    size_t lanes = 0;
    bool proven = false;  // it gave chunks that are right
    bool avoid = false;
    PeerBook::Clock::time_point busy_until;
  };
  struct LaneState {
    std::optional<size_t> peer;
    std::unique_ptr<PeerSource> source;
    bool asked_again = false;  // at once, since it gave something
  };

  // The peer for a lane: the one it has, else that with the fewest lanes, in
  // order; those that are busy last. Locked.
  std::optional<size_t> Choose(std::optional<size_t> current) const {
    const auto now = PeerBook::Clock::now();
    if (current && !peers_[*current].failure &&
        peers_[*current].busy_until <= now) {
      return current;
    }
    std::optional<size_t> best;
    const auto cost = [&](size_t i) {
      return std::pair(peers_[i].busy_until > now, peers_[i].lanes);
    };
    for (size_t i = 0; i < peers_.size(); ++i) {
      if (peers_[i].failure || peers_[i].avoid) continue;
      if (!best || cost(i) < cost(*best)) best = i;
    }
    return best;
  }
  void Leave(LaneState& state) {
    if (state.peer) --peers_[*state.peer].lanes;
    state.peer.reset();
    state.source.reset();
    state.asked_again = false;
  }
  Source* Connect(LaneState& state) {
    state.source = std::make_unique<PeerSource>(
        peers_[*state.peer].peer, manifest_, options_, spec_.pull.limiter,
        spec_.pull.progress);
    return state.source.get();
  }
  void GiveUp(size_t index, const Status& status) {
    PeerState& peer = peers_[index];
    if (peer.failure) return;
    peer.failure = status;
    if (stop_.stop_requested()) return;
    BIM_LOG_WARN("peer {}: {}; not asked for image {} any more",
                 peer.peer.address, status.message(), manifest_.key.name);
    // Who contradicts another peer's manifest need not be the one that is
    // wrong.
    PeerBook::Fault fault = FaultOf(status);
    if (status.message().starts_with("chunk ") &&
        peer.peer.address != manifest_from_) {
      fault = PeerBook::Fault::kSoft;
    }
    book_.Penalize(peer.peer.address, fault, status.message(), options_.penalty,
                   PeerBook::Clock::now());
  }

  PeerResolver& resolver_;
  PeerBook& book_;
  const store::ImageRecord& manifest_;
  const std::string manifest_from_;
  const PeerPullSpec& spec_;
  const PeerOptions& options_;
  const std::stop_token stop_;
  mutable std::mutex mutex_;
  std::vector<PeerState> peers_;
  std::vector<LaneState> lanes_;
  PeerBook::Clock::time_point last_bytes_ = PeerBook::Clock::now();
};

}  // namespace

// ---------------------------------------------------------------- book

void PeerBook::Penalize(const std::string& address, Fault fault,
                        std::string reason, milliseconds first,
                        Clock::time_point now) {
  std::lock_guard lock(mutex_);
  if (entries_.size() >= kMaxBook && entries_.count(address) == 0) {
    const auto oldest = std::min_element(
        entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
          return a.second.until < b.second.until;
        });
    entries_.erase(oldest);
  }
  Entry& entry = entries_[address];
  entry.penalty = entry.penalty.count() == 0
                      ? first
                      : std::min(entry.penalty * 2, kMaxPenalty);
  if (entry.until <= now) entry.fault = fault;
  if (fault == Fault::kHard) entry.fault = fault;
  entry.reason = std::move(reason);
  entry.until = now + entry.penalty;
}

void PeerBook::Forgive(const std::string& address) {
  std::lock_guard lock(mutex_);
  entries_.erase(address);
}

std::optional<std::pair<PeerBook::Fault, std::string>> PeerBook::FaultOf(
    const std::string& address, Clock::time_point now) const {
  std::lock_guard lock(mutex_);
  const auto it = entries_.find(address);
  if (it == entries_.end() || it->second.until <= now) return std::nullopt;
  return std::pair(it->second.fault, it->second.reason);
}

// ------------------------------------------------------------- finding

std::string ValidatorOf(const base::Digest& sha512) {
  return "sha512:" + sha512.Hex();
}

FoundPeers FindPeers(PeerResolver& resolver, PeerBook& book,
                     const PeerQuery& query, const Options& options,
                     std::stop_token stop) {
  FoundPeers found;
  const auto now = PeerBook::Clock::now();
  struct Candidate {
    Peer peer;
    int rank = 0;  // trusted ones first, then the others, then suspects
  };
  std::vector<Candidate> candidates;
  for (const std::string& address : query.addresses) {
    Candidate candidate{{address, std::nullopt}, 1};
    if (const auto fault = book.FaultOf(address, now)) {
      if (fault->first == PeerBook::Fault::kHard) {
        found.complaints.push_back(
            address + ": not asked, it failed before: " + fault->second);
        continue;
      }
      candidate.rank = 2;
    }
    // A name is trusted by its address, which only asking tells.
    std::string host = address.substr(0, address.rfind(':'));
    if (host.size() > 1 && host.front() == '[') {
      host = host.substr(1, host.size() - 2);
    }
    if (candidate.rank == 1 && IsTrusted(host, options.peers)) {
      candidate.rank = 0;
    }
    candidates.push_back(std::move(candidate));
  }
  std::stable_sort(
      candidates.begin(), candidates.end(),
      [](const auto& a, const auto& b) { return a.rank < b.rank; });
  std::optional<Candidate> plain;  // has the image, tells no chunks
  store::ImageRecord plain_record;
  for (Candidate& candidate : candidates) {
    if (stop.stop_requested()) return found;
    const std::string& address = candidate.peer.address;
    if (!found.manifest && PeerBook::Clock::now() - now > kFindFor) {
      found.complaints.push_back(address +
                                 ": not asked, the others took too long");
      continue;
    }
    if (found.manifest) {
      found.peers.push_back(std::move(candidate.peer));
      continue;
    }
    // With one that works, those that failed lately can wait.
    if (plain && candidate.rank == 2) continue;
    auto info = resolver.Resolve(address, options.peers.connect, stop);
    if (stop.stop_requested()) return found;
    Status problem = info.status();
    if (info.ok()) {
      candidate.peer.info = *info;
      if (info->api_version < kManifestApiVersion) {
        // An older one of ours: the whole file, and its digest, can be had.
        if (!plain) {
          plain = candidate;
          plain_record = store::ImageRecord();
          plain_record.key = query.key;
        }
        continue;
      }
      auto record = GetManifest(*info, query, options, stop);
      if (stop.stop_requested()) return found;
      if (record.ok() && record->chunks.empty()) {
        if (!plain) {
          plain = candidate;
          plain_record = *std::move(record);
        }
        continue;
      }
      if (record.ok()) {
        found.manifest =
            std::make_shared<const store::ImageRecord>(*std::move(record));
        found.manifest_from = address;
        found.trusted = IsTrusted(info->ip, options.peers);
        found.peers.insert(found.peers.begin(), std::move(candidate.peer));
        continue;
      }
      problem = record.status();
    }
    found.complaints.push_back(address + ": " + problem.message());
    const bool no_fault = problem.code() == Code::kNotFound ||
                          (info.ok() && problem.code() == Code::kUnavailable) ||
                          problem.code() == Code::kFailedPrecondition;
    if (!no_fault) {
      book.Penalize(address, FaultOf(problem), problem.message(),
                    options.peers.penalty, PeerBook::Clock::now());
    }
  }
  if (!found.manifest && plain) {
    found.manifest =
        std::make_shared<const store::ImageRecord>(std::move(plain_record));
    found.manifest_from = plain->peer.address;
    found.peers.assign(1, std::move(plain->peer));
  }
  return found;
}

std::unique_ptr<Source> MakePlainPeerSource(const Peer& peer,
                                            const store::ImageKey& key,
                                            const Options& options) {
  Options direct = options;
  direct.proxy = "none";
  direct.deadlines = DeadlinesOf(options.peers);
  auto source = MakeUrlSource(ImageUrl(*peer.info, key) + "data", "", direct);
  BIM_CHECK(source.ok());
  return *std::move(source);
}

// -------------------------------------------------------------- reusing

namespace {

// Copies one chunk through memory. DATA_LOSS: it differs.
Status CopyChunk(store::Ingest& ingest, uint32_t index, const LocalImage& from,
                 uint32_t from_index, std::stop_token stop) {
  const uint64_t chunk = ingest.chunk_size();
  const uint64_t begin = uint64_t{index} * chunk;
  const uint64_t end = std::min(ingest.total_bytes(), begin + chunk);
  const uint64_t source = uint64_t{from_index} * chunk;
  auto writer = ingest.Write(begin, end);
  std::vector<std::byte> buffer(
      static_cast<size_t>(std::min<uint64_t>(end - begin, 256 * 1024)));
  for (uint64_t at = begin; at < end;) {
    const size_t want =
        static_cast<size_t>(std::min<uint64_t>(buffer.size(), end - at));
    const auto got =
        io::PreadFull(from.file.get(), buffer.data(), want,
                      source + (at - begin), "a file of this node");
    if (!got.ok() || *got != want) {
      return base::DataLossError("the file cannot be read");
    }
    BIM_RETURN_IF_ERROR(writer->Append(std::span(buffer).first(want), stop));
    at += want;
  }
  return writer->Flush(stop);
}

}  // namespace

Status ReuseChunks(store::Ingest& ingest, const NextLocalImage& next,
                   Progress* progress, std::stop_token stop) {
  if (!next) return base::OkStatus();
  const store::ImageRecord& wanted = *ingest.reference();
  std::vector<uint32_t> missing;
  for (const io::Extent& range : ingest.Missing()) {
    for (uint64_t at = range.begin; at < range.end; at += wanted.chunk_size) {
      missing.push_back(static_cast<uint32_t>(at / wanted.chunk_size));
    }
  }
  if (missing.empty()) return base::OkStatus();
  ChunkIndex index(wanted, missing);
  while (!index.complete()) {
    if (stop.stop_requested()) return base::CancelledError("stopped");
    std::optional<LocalImage> candidate = next();
    if (!candidate) break;
    bool clone = true;
    size_t bad = 0;
    for (const ChunkMatch& match : index.Match(candidate->record)) {
      if (stop.stop_requested()) return base::CancelledError("stopped");
      Status status = base::UnimplementedError("");
      if (clone) {
        status = ingest.CloneChunk(match.wanted, candidate->file.get(),
                                   match.candidate * wanted.chunk_size);
        clone = status.code() != Code::kUnimplemented;
      }
      if (!clone) {
        status =
            CopyChunk(ingest, match.wanted, *candidate, match.candidate, stop);
      }
      if (status.ok()) {
        if (progress != nullptr) {
          const uint64_t begin = match.wanted * wanted.chunk_size;
          progress->reused_bytes +=
              std::min(wanted.chunk_size, wanted.stamp.size - begin);
        }
        continue;
      }
      if (status.code() != Code::kDataLoss) return status;
      // Not what its record says: somebody else may have it.
      index.Unmatch(match.wanted);
      if (++bad == 1) {
        BIM_LOG_WARN("image {}: a chunk of {} is not as recorded: not reused",
                     wanted.key.name, candidate->record.key.name);
      }
    }
  }
  return base::OkStatus();
}

// -------------------------------------------------------------- pulling

PullResult PullFromPeers(PeerResolver& resolver, PeerBook& book,
                         const FoundPeers& found, store::Ingest& ingest,
                         const PeerPullSpec& spec, const Options& options,
                         const std::function<void()>& on_bytes,
                         std::stop_token stop) {
  PullResult result;
  const auto from_ingest = [&](Status status) {
    const Failure failure = ClassifyIngest(status);
    result.outcome = {failure, std::move(status), {}};
    return std::move(result);
  };
  if (!ingest.begun()) {
    if (Status restored = ingest.Restore(stop); !restored.ok()) {
      return from_ingest(std::move(restored));
    }
  }
  if (!ingest.begun()) {
    if (Status begun = ingest.Begin(found.manifest->stamp.size,
                                    ValidatorOf(found.manifest->sha512));
        !begun.ok()) {
      return from_ingest(std::move(begun));
    }
  }
  result.resumed_bytes = ingest.stored_bytes();
  on_bytes();
  if (Status reused =
          ReuseChunks(ingest, spec.next_local, spec.pull.progress, stop);
      !reused.ok()) {
    return from_ingest(std::move(reused));
  }
  const auto missing = ingest.Missing();
  if (!missing.empty()) {
    RangeQueue queue(std::max<uint64_t>(1 << 20, ingest.chunk_size()));
    queue.Add(missing);
    if (found.peers.empty()) {
      uint64_t bytes = 0;
      for (const io::Extent& range : missing) bytes += range.end - range.begin;
      std::string complaints;
      for (const std::string& complaint : found.complaints) {
        complaints += "; " + complaint;
      }
      result.outcome = {
          Failure::kTransient,
          base::UnavailableError("nobody has the " + std::to_string(bytes) +
                                 " bytes that are missing" + complaints),
          {}};
      return result;
    }
    PeerLanes lanes(resolver, book, found, spec, options, stop);
    PullSpec pull = spec.pull;
    pull.limiter = nullptr;  // the sources pay, for what is on the wire
    pull.ranges_are_wire = false;
    LaneGroup group(ingest, queue, lanes, pull, stop);
    group.StartMonitor();
    group.RunFirstLane();
    result.outcome = group.Finish();
    if (result.outcome.failure == Failure::kTransient) {
      const std::string complaints = lanes.Complaints();
      result.outcome.status = base::UnavailableError(
          "no peer is left" + (complaints.empty()
                                   ? ": " + result.outcome.status.message()
                                   : ": " + complaints));
      result.outcome.retry_after.reset();
    }
    if (result.outcome.failure != Failure::kNone) return result;
    if (Status settled = ingest.Settle(); !settled.ok()) {
      return from_ingest(std::move(settled));
    }
  }
  BIM_FAILPOINT("transfer.peers.received");
  if (spec.before_commit) {
    if (Status status = spec.before_commit(); !status.ok()) {
      return from_ingest(std::move(status));
    }
  }
  auto record = ingest.Commit(stop);
  if (record.ok()) {
    result.record = *std::move(record);
    return result;
  }
  Status status = record.status();
  if (status.code() == Code::kDataLoss) {
    // Who told the manifest told wrong.
    book.Penalize(found.manifest_from, PeerBook::Fault::kHard,
                  "its manifest is wrong: " + status.message(),
                  options.peers.penalty, PeerBook::Clock::now());
    result.outcome = {
        Failure::kWrong,
        base::DataLossError("peer " + found.manifest_from +
                            " told a wrong manifest: " + status.message()),
        {}};
    return result;
  }
  if (status.code() == Code::kFailedPrecondition) {
    result.outcome = {
        Failure::kWrong,
        status.WithContext("the image of peer " + found.manifest_from),
        {}};
    return result;
  }
  return from_ingest(std::move(status));
}

}  // namespace bim::transfer
