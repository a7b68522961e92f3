// The work on a copy: what runs on a pool's thread, with nothing locked.

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/manager/manager_impl.h"

namespace bim::manager {
namespace {

using base::Code;
using base::Result;
using base::Status;

// Images of this node that are looked through for chunks to share.
constexpr size_t kMaxCandidates = 64;

// Whether two manifests say the same of each chunk.
bool SameChunks(const store::ImageRecord& a, const store::ImageRecord& b) {
  return a.sha512 == b.sha512 && a.chunk_size == b.chunk_size &&
         a.chunks == b.chunks;
}

// "3 of 80 chunks differ, the first at byte 262144", when there is a manifest
// to compare with.
std::string DamagedChunks(const store::Disk& disk,
                          const store::ImageRecord& found) {
  const auto known = store::ReadRecord(disk.root(), found.key, true);
  if (!known.ok() || known->chunks.size() != found.chunks.size() ||
      known->chunk_size != found.chunk_size) {
    return "";
  }
  size_t damaged = 0;
  size_t first = 0;
  for (size_t i = 0; i < found.chunks.size(); ++i) {
    if (found.chunks[i] == known->chunks[i]) continue;
    if (damaged++ == 0) first = i;
  }
  return "; " + std::to_string(damaged) + " of " +
         std::to_string(found.chunks.size()) +
         " chunks differ, the first at byte " +
         std::to_string(first * found.chunk_size);
}

// Of a manager that has no way to other nodes.
class NoPeers final : public transfer::PeerResolver {
 public:
  Result<transfer::PeerInfo> Resolve(const std::string& address,
                                     std::chrono::milliseconds /*timeout*/,
                                     std::stop_token /*stop*/) override {
    return base::UnavailableError("this manager cannot ask peer " + address);
  }
};

}  // namespace

std::string ManagerImpl::ExpectedChecksum(const ImageSpec& spec) {
  return spec.sha512 ? spec.sha512->Hex() : "";
}

std::string ManagerImpl::Difference(
    const ImageSpec& spec, const std::optional<store::ImageRecord>& known,
    const store::ImageRecord& found) {
  if (spec.size != 0 && spec.size != found.stamp.size) {
    return "expected size " + std::to_string(spec.size) + ", found " +
           std::to_string(found.stamp.size);
  }
  const auto& sha512 = spec.sha512 ? spec.sha512
                       : known     ? std::optional(known->sha512)
                                   : std::nullopt;
  if (sha512 && *sha512 != found.sha512) {
    return "expected SHA-512 " + sha512->Hex() + ", found " +
           found.sha512.Hex();
  }
  if (spec.sha256 && found.sha256 && *spec.sha256 != *found.sha256) {
    return "expected SHA-256 " + spec.sha256->Hex() + ", found " +
           found.sha256->Hex();
  }
  return "";
}

void ManagerImpl::RunJob(Job job) {
  JobEnd end;
  // What an earlier job left is at rest before this one touches the files.
  job.retired.reset();
  if (job.stop.stop_requested()) {
    end.status = base::CancelledError("stopped");
    end.failure = transfer::Failure::kCancelled;
  } else {
    switch (job.step) {
      case Step::kDownload:
        end = Convert(job, Download(job));
        break;
      case Step::kCopy:
        end = CopyFromDisk(job);
        break;
      case Step::kScan:
        end = ScanFile(job);
        break;
      case Step::kVerify:
        end = VerifyFile(job);
        break;
      case Step::kNone:
      case Step::kWait:
      case Step::kUpload:
        break;
    }
  }
  EndJob(job, std::move(end));
}

store::IngestOptions ManagerImpl::IngestOptionsOf(
    const Job& job, const std::string& origin) const {
  store::IngestOptions options;
  // What is still to be converted is not the file that is expected.
  if (job.spec.source.convert.empty()) {
    options.expect_sha512 = job.spec.sha512;
    options.expect_sha256 = job.spec.sha256;
  }
  options.file_mode = options_.file_mode;
  options.origin = origin;
  options.shown_checksum = ExpectedChecksum(job.spec);
  return options;
}

CopyEntry* ManagerImpl::CopyOf(const Job& job) {
  const auto it = images_.find(job.key);
  if (it == images_.end()) return nullptr;
  const auto copy = it->second.copies.find(job.disk_uuid);
  return copy != it->second.copies.end() && copy->second.job == job.id
             ? &copy->second
             : nullptr;
}

void ManagerImpl::ShowIngest(const Job& job,
                             const std::shared_ptr<store::Ingest>& ingest) {
  Lock lock(mutex_);
  if (CopyEntry* copy = CopyOf(job)) copy->ingest = ingest;
}

void ManagerImpl::JobState(const Job& job, CopyState state,
                           std::string message) {
  {
    Lock lock(mutex_);
    CopyEntry* copy = CopyOf(job);
    if (copy == nullptr || copy->running == Step::kNone ||
        copy->state == CopyState::kUnknown) {
      return;
    }
    SetState(*copy, state, std::move(message));
    Touch(job.key, images_.at(job.key));
  }
  Notify();
}

std::optional<ManagerImpl::JobEnd> ManagerImpl::Prepare(const Job& job) {
  JobEnd end;
  CopyEntry judged = Judge(job.spec, InspectOn(*job.disk, job.spec), *job.disk);
  if (judged.state == CopyState::kReady) {
    end.record = std::move(judged.record);
    return end;
  }
  if (judged.state != CopyState::kPending || judged.found_file) {
    end = ScanFile(job);
    if (!end.file_gone) return end;
    end = JobEnd();
  }
  if (job.disk->root().Stat(store::DesiredFile(job.key)).ok()) {
    return std::nullopt;
  }
  Status put = job.disk->PutDesired(job.key, EncodeDesired(Desired{job.spec}));
  if (put.ok()) {
    CopyEntry nothing;  // of what lies there
    TellCreated(*job.disk, job.key, job.spec, nothing);
    return std::nullopt;
  }
  end.status = std::move(put);
  end.failure = transfer::Failure::kDisk;
  return end;
}

ManagerImpl::JobEnd ManagerImpl::OpenIngest(const Job& job,
                                            store::IngestOptions options) {
  JobEnd end;
  auto opened = store::Ingest::Open(job.disk, FileOf(job), std::move(options));
  if (opened.ok()) {
    end.ingest = *std::move(opened);
    ShowIngest(job, end.ingest);
    return end;
  }
  end.status = opened.status();
  const bool final = end.status.code() == Code::kAlreadyExists ||
                     end.status.code() == Code::kFailedPrecondition;
  end.failure =
      final ? transfer::Failure::kPermanent : transfer::Failure::kDisk;
  return end;
}

ManagerImpl::JobEnd ManagerImpl::Download(Job& job) {
  JobEnd end;
  // The one owner: there is never a second ingest for the same file.
  end.ingest = std::move(job.ingest);
  if (!end.ingest) {
    // What was wanted here before this process knew may be done already.
    if (auto settled = Prepare(job)) return *std::move(settled);
  }
  const SourceSpec& source = job.spec.source;
  if (!source.convert.empty() && !end.ingest) {
    // A restart found it complete, to be converted.
    auto staged =
        store::Inspect(*job.disk, FileOf(job), options_.file_mode, "");
    if (staged.ok() && staged->kind == store::Found::Kind::kReady) {
      end.record = std::move(staged->record);
      return end;
    }
  }
  if (source.data_source) return ReadDataSource(job);
  if (!source.clone_name.empty()) return Clone(job);
  if (source.receive_port != 0 || source.volume) return Receive(job);
  if (source.peers.empty()) return DownloadFromUrl(job, std::move(end));
  if (job.spec.directed && !end.ingest && HasToPush(job)) return Receive(job);
  bool settled = DownloadFromPeers(job, end);
  // Who told a wrong manifest is not asked again: the next one may be right.
  for (size_t tries = 1; tries < job.spec.source.peers.size() &&
                         end.failure == transfer::Failure::kWrong &&
                         end.status.code() == Code::kDataLoss;
       ++tries) {
    JobEnd again;
    again.ingest = std::move(end.ingest);
    settled = DownloadFromPeers(job, again);
    if (again.failure == transfer::Failure::kTransient) {
      // Nobody is left: what was wrong says more.
      end.ingest = std::move(again.ingest);
      break;
    }
    end = std::move(again);
  }
  if (settled || job.spec.source.url.empty()) return end;
  const std::string complaint = end.status.message();
  BIM_LOG_INFO("image {} ({}) on disk {}: {}; going to its URL", job.key.name,
               job.key.uuid, job.disk_uuid, complaint);
  JobEnd fresh;
  if (end.ingest && !end.ingest->reference()) {
    fresh.ingest = std::move(end.ingest);
  } else {
    ShowIngest(job, nullptr);
    end.ingest.reset();
  }
  fresh = DownloadFromUrl(job, std::move(fresh));
  if (!fresh.status.ok() && fresh.failure != transfer::Failure::kCancelled) {
    fresh.status = base::Status(fresh.status.code(),
                                fresh.status.message() + "; " + complaint);
  }
  return fresh;
}

ManagerImpl::JobEnd ManagerImpl::DownloadFromUrl(const Job& job, JobEnd end) {
  if (end.ingest && end.ingest->reference()) {
    ShowIngest(job, nullptr);
    end.ingest.reset();
  }
  if (!end.ingest) {
    end = OpenIngest(job, IngestOptionsOf(job, "download"));
    if (!end.ingest) return end;
  }
  auto source = transfer::MakeUrlSource(
      job.spec.source.url, job.spec.source.credential, options_.transfer);
  if (!source.ok()) {
    end.status = source.status();
    end.failure = transfer::Failure::kPermanent;
    return end;
  }
  transfer::PullSpec spec;
  spec.expected_size = job.spec.size;
  spec.max_size = options_.transfer.max_image_size;
  spec.connections = options_.transfer.connections;
  spec.limiter = &download_rate_;
  spec.progress = job.progress.get();
  return EndPull(
      job, std::move(end),
      transfer::Pull(
          **source, *end.ingest, spec,
          [&] { JobState(job, CopyState::kInProgress, ""); }, job.stop));
}

ManagerImpl::JobEnd ManagerImpl::EndPull(const Job& job, JobEnd end,
                                         transfer::PullResult pulled) {
  end.status = std::move(pulled.outcome.status);
  end.failure = pulled.outcome.failure;
  end.retry_after = pulled.outcome.retry_after;
  // What is still on its way to the file counts for this try, not for the next.
  if (end.failure == transfer::Failure::kTransient) {
    (void)end.ingest->Settle();
  }
  // A source that breaks at the same place each time is no progress.
  const uint64_t stored = end.ingest->stored_bytes();
  end.progress =
      stored > std::max(pulled.resumed_bytes, job.progress->best_bytes.load());
  if (stored > job.progress->best_bytes) job.progress->best_bytes = stored;
  if (pulled.record) {
    end.record = std::move(pulled.record);
    end.ingest.reset();
  }
  return end;
}

transfer::PeerQuery ManagerImpl::PeerQueryOf(const Job& job) const {
  transfer::PeerQuery query;
  query.addresses = job.spec.source.peers;
  query.key = job.key;
  query.sha512 = job.spec.sha512;
  query.sha256 = job.spec.sha256;
  query.size = job.spec.size;
  query.max_size = options_.transfer.max_image_size;
  return query;
}

bool ManagerImpl::DownloadFromPeers(const Job& job, JobEnd& end) {
  using transfer::Failure;
  const transfer::FoundPeers found =
      transfer::FindPeers(*options_.peers, peer_book_, PeerQueryOf(job),
                          options_.transfer, job.stop);
  if (job.stop.stop_requested()) {
    end.status = base::CancelledError("stopped");
    end.failure = Failure::kCancelled;
    return true;
  }
  if (!found.manifest) {
    std::string complaints;
    for (const std::string& complaint : found.complaints) {
      complaints += (complaints.empty() ? "" : "; ") + complaint;
    }
    end.status = base::UnavailableError("no peer has the image: " + complaints);
    end.failure = Failure::kTransient;
    return false;
  }
  const store::ImageRecord& manifest = *found.manifest;
  store::IngestOptions options = IngestOptionsOf(job, "peer");
  if (!options.expect_sha512 && manifest.sha512 != base::Digest()) {
    options.expect_sha512 = manifest.sha512;
  }
  transfer::PullSpec spec;
  spec.expected_size = job.spec.size;
  spec.max_size = options_.transfer.max_image_size;
  spec.connections = options_.transfer.peers.connections;
  spec.limiter = &peer_rate_;
  spec.progress = job.progress.get();
  const auto on_bytes = [&] { JobState(job, CopyState::kInProgress, ""); };
  const bool by_chunks = !manifest.chunks.empty();
  if (by_chunks) {
    options.reference = found.manifest;
    options.trust_reference =
        found.trusted && (!job.spec.sha256 || manifest.sha256);
    options.sha512_pending = options.trust_reference;
  }
  const bool go_on =
      end.ingest &&
      (by_chunks ? end.ingest->reference() &&
                       SameChunks(*end.ingest->reference(), manifest)
                 : !end.ingest->reference());
  if (!go_on) {
    ShowIngest(job, nullptr);
    end.ingest.reset();
    end = OpenIngest(job, std::move(options));
    if (!end.ingest) return true;
  }
  if (by_chunks) {
    transfer::PeerPullSpec peer_spec;
    peer_spec.pull = spec;
    peer_spec.next_local = LocalImages(job, manifest);
    end = EndPull(job, std::move(end),
                  transfer::PullFromPeers(
                      *options_.peers, peer_book_, found, *end.ingest,
                      peer_spec, options_.transfer, on_bytes, job.stop));
  } else {
    const auto source = transfer::MakePlainPeerSource(
        found.peers.front(), job.key, options_.transfer);
    end =
        EndPull(job, std::move(end),
                transfer::Pull(*source, *end.ingest, spec, on_bytes, job.stop));
  }
  if (end.record) {
    BIM_LOG_INFO("image {} ({}) on disk {}: from peer {}{}", job.key.name,
                 job.key.uuid, job.disk_uuid, found.manifest_from,
                 found.peers.size() > 1 ? " and others" : "");
    return true;
  }
  if (end.failure == Failure::kPermanent) {
    // What a peer has is wrong; others, and other times, may be right.
    end.failure = Failure::kWrong;
    end.status =
        end.status.WithContext("the image of peer " + found.manifest_from);
  }
  if (!by_chunks &&
      (end.failure == Failure::kWrong || end.failure == Failure::kTransient)) {
    // The next attempt asks another one first.
    peer_book_.Penalize(found.manifest_from,
                        end.failure == Failure::kWrong
                            ? transfer::PeerBook::Fault::kHard
                            : transfer::PeerBook::Fault::kSoft,
                        end.status.message(), options_.transfer.peers.penalty,
                        transfer::PeerBook::Clock::now());
    if (end.failure == Failure::kTransient) {
      end.status = end.status.WithContext("peer " + found.manifest_from);
    }
  }
  return end.failure == Failure::kDisk || end.failure == Failure::kCancelled;
}

transfer::NextLocalImage ManagerImpl::LocalImages(
    const Job& job, const store::ImageRecord& wanted, bool repair) {
  struct Candidate {
    std::weak_ptr<store::Disk> disk;  // it may be taken away meanwhile
    ImageKey key;
    store::FileStamp stamp;
    int rank = 0;
    bool any_state = false;
  };
  auto candidates = std::make_shared<std::vector<Candidate>>();
  {
    Lock lock(mutex_);
    for (const auto& [key, image] : images_) {
      for (const auto& [disk_uuid, copy] : image.copies) {
        // For a repair what is left of the image's other copies is good enough.
        const bool any_state = repair && key == job.key;
        if ((copy.state != CopyState::kReady && !any_state) || !copy.record ||
            copy.record->chunk_size != wanted.chunk_size ||
            (key == job.key && disk_uuid == job.disk_uuid)) {
          continue;
        }
        auto disk = UsableDisk(disk_uuid);
        if (!disk) continue;
        // The same image elsewhere, then earlier ones of its name; those whose
        // blocks can be shared first.
        const int rank = (key == job.key             ? 0
                          : key.name == job.key.name ? 2
                                                     : 4) +
                         (disk->device() == job.disk->device() ? 0 : 1);
        candidates->push_back({disk, key, copy.record->stamp, rank, any_state});
      }
    }
  }
  std::stable_sort(
      candidates->begin(), candidates->end(),
      [](const auto& a, const auto& b) { return a.rank < b.rank; });
  if (candidates->size() > kMaxCandidates) candidates->resize(kMaxCandidates);
  auto next = std::make_shared<size_t>(0);
  return [candidates, next]() -> std::optional<transfer::LocalImage> {
    while (*next < candidates->size()) {
      const Candidate& candidate = (*candidates)[(*next)++];
      const auto disk = candidate.disk.lock();
      if (!disk) continue;
      const io::Dir& root = disk->root();
      auto file =
          root.OpenFile(store::DataFile(candidate.key), O_RDONLY | O_NONBLOCK);
      if (!file.ok()) continue;
      auto record = store::ReadRecord(root, candidate.key, true);
      struct stat st = {};
      if (!record.ok() || record->chunks.empty() ||
          ::fstat(file->get(), &st) != 0 ||
          (!candidate.any_state &&
           !store::Matches(candidate.stamp, store::StampOf(st)))) {
        continue;
      }
      return transfer::LocalImage{*std::move(file), *std::move(record)};
    }
    return std::nullopt;
  };
}

ManagerImpl::JobEnd ManagerImpl::CopyFromDisk(const Job& job) {
  JobEnd end;
  const auto fail = [&](Status status, transfer::Failure failure) {
    end.status = std::move(status);
    end.failure = failure;
    return std::move(end);
  };
  if (auto settled = Prepare(job)) return *std::move(settled);
  const io::Dir& from = job.source_disk->root();
  auto file = from.OpenFile(store::DataFile(job.key), O_RDONLY | O_NONBLOCK);
  if (!file.ok()) return fail(file.status(), transfer::Failure::kTransient);
  auto record = store::ReadRecord(from, job.key, true);
  if (!record.ok()) record = *job.record;  // without a manifest
  struct stat st = {};
  if (::fstat(file->get(), &st) != 0 ||
      !store::Matches(record->stamp, store::StampOf(st))) {
    end.source_damaged = true;  // or touched: verification will tell
    return fail(base::AbortedError("the copy on disk " +
                                   job.source_disk->uuid() + " was modified"),
                transfer::Failure::kTransient);
  }
  record->stamp = store::StampOf(st);
  JobState(job, CopyState::kInProgress, "");
  store::ImageRecord cloned = *record;
  cloned.origin = "reflink";
  auto reflinked =
      store::Reflink(*job.disk, job.key, file->get(), cloned,
                     options_.file_mode, ExpectedChecksum(job.spec));
  if (reflinked.ok()) {
    end.record = *std::move(reflinked);
    return end;
  }
  if (reflinked.status().code() != Code::kUnimplemented) {
    return fail(reflinked.status(), transfer::Failure::kDisk);
  }
  store::IngestOptions options = IngestOptionsOf(job, "copy");
  options.expect_sha512 = record->sha512;
  if (!record->chunks.empty()) {
    options.reference = std::make_shared<const store::ImageRecord>(*record);
    options.trust_reference = true;
    options.sha512_pending = record->sha512_pending;
  }
  auto opened = store::Ingest::Open(job.disk, job.key, std::move(options));
  if (!opened.ok()) return fail(opened.status(), transfer::Failure::kDisk);
  end.ingest = *std::move(opened);
  ShowIngest(job, end.ingest);
  const auto source =
      transfer::MakeFileSource(*std::move(file), *std::move(record));
  transfer::PullResult pulled = transfer::Pull(
      *source, *end.ingest, {}, [] {}, job.stop);
  end.status = std::move(pulled.outcome.status);
  end.failure = pulled.outcome.failure;
  if (pulled.record) {
    end.record = std::move(pulled.record);
  } else if (end.failure == transfer::Failure::kPermanent) {
    // The ready copy is not what its manifest says.
    end.source_damaged = true;
    end.status =
        end.status.WithContext("the copy on disk " + job.source_disk->uuid());
    end.failure = transfer::Failure::kTransient;
  }
  // The next attempt looks for a source anew.
  end.ingest.reset();
  return end;
}

Result<store::ImageRecord> ManagerImpl::ScanOf(const Job& job) {
  const bool want_sha256 =
      job.spec.sha256 || (job.record && job.record->sha256);
  uint64_t paid = 0;
  return store::Scan(*job.disk, job.key, want_sha256, job.stop,
                     [&](uint64_t done, uint64_t read) {
                       if (job.scanned) job.scanned->store(done);
                       // Ends early when stopped; the scan then sees it, too.
                       (void)scan_rate_.Wait(read - paid, job.stop);
                       paid = read;
                     });
}

ManagerImpl::JobEnd ManagerImpl::ScanFile(const Job& job) {
  JobEnd end;
  JobState(job, CopyState::kInProgress, "checking the file that lies there");
  const auto found = InspectOn(*job.disk, job.spec);
  const std::string what = job.disk->path() + "/" + store::DataFile(job.key);
  std::string difference;
  if (found.ok() && job.spec.size != 0 && found->stamp.size != job.spec.size) {
    difference = "expected size " + std::to_string(job.spec.size) + ", found " +
                 std::to_string(found->stamp.size);
  }
  std::optional<store::ImageRecord> known;
  if (found.ok() && (found->kind == store::Found::Kind::kChanged ||
                     found->kind == store::Found::Kind::kReady)) {
    known = found->record;
  }
  if (difference.empty()) {
    auto scanned = ScanOf(job);
    if (!scanned.ok()) {
      end.status = scanned.status();
      switch (scanned.status().code()) {
        case Code::kCancelled:
          end.failure = transfer::Failure::kCancelled;
          break;
        case Code::kNotFound:
          end.file_gone = true;
          break;
        case Code::kAborted:
          end.failure = transfer::Failure::kTransient;
          break;
        case Code::kDataLoss:
        case Code::kFailedPrecondition:
          end.failure = transfer::Failure::kPermanent;
          end.damaged = true;
          end.status = scanned.status().WithContext(
              what +
              " lies at the image's place, is no sound image, and is "
              "left alone");
          break;
        default:
          end.failure = transfer::Failure::kDisk;
      }
      return end;
    }
    difference = Difference(job.spec, known, *scanned);
    if (difference.empty()) {
      scanned->origin = "reused file, rehashed";
      Status written =
          store::WriteRecord(*job.disk, *scanned, ExpectedChecksum(job.spec));
      if (!written.ok()) {
        end.status = std::move(written);
        end.failure = transfer::Failure::kDisk;
        return end;
      }
      scanned->chunks.clear();
      end.record = *std::move(scanned);
      return end;
    }
  }
  BIM_LOG_WARN("{} is not the image that is wanted ({}): removed", what,
               difference);
  end.status = base::FailedPreconditionError(
      "the file that lay at the image's place is not the one that is wanted (" +
      difference + ") and was removed");
  if (Status removed = store::RemoveImage(*job.disk, job.key, true);
      !removed.ok()) {
    end.status = std::move(removed);
    end.failure = transfer::Failure::kDisk;
    return end;
  }
  if (job.claim_data_source) return ClaimDataSource(job);
  end.file_gone = true;
  return end;
}

ManagerImpl::JobEnd ManagerImpl::VerifyFile(const Job& job) {
  JobEnd end;
  auto scanned = ScanOf(job);
  std::string damage;
  bool proven = true;
  if (scanned.ok()) {
    const std::string difference = Difference(job.spec, job.record, *scanned);
    if (difference.empty()) {
      scanned->origin = job.record ? job.record->origin : "";
      const Status written =
          store::WriteRecord(*job.disk, *scanned, ExpectedChecksum(job.spec));
      if (!written.ok()) {
        // Proven all the same; a restart will have to prove it again.
        BIM_LOG_WARN(
            "image {} ({}) on disk {}: cannot record that it was verified: {}",
            job.key.name, job.key.uuid, job.disk_uuid, written.message());
      }
      scanned->chunks.clear();
      end.record = *std::move(scanned);
      return end;
    }
    end.judged = scanned->stamp;
    damage = (job.record && job.record->sha512_pending
                  ? "the SHA-512 that a trusted peer told is wrong: "
                  : "the content is not what it was: ") +
             difference + DamagedChunks(*job.disk, *scanned);
  } else {
    end.status = scanned.status();
    switch (end.status.code()) {
      case Code::kCancelled:
        end.failure = transfer::Failure::kCancelled;
        return end;
      case Code::kNotFound:
        end.file_gone = true;
        return end;
      case Code::kFailedPrecondition:
      case Code::kDataLoss:
        damage = end.status.message();
        break;
      default:
        end.failure = transfer::Failure::kDisk;
        // What cannot be read can be replaced all the same.
        if (!job.repair || end.status.code() != Code::kUnavailable) return end;
        damage = end.status.message();
        proven = false;
    }
  }
  if (job.repair) {
    JobEnd repaired = Repair(job);
    if (repaired.record || repaired.failure == transfer::Failure::kCancelled) {
      return repaired;
    }
    damage += "; it cannot be repaired: " + repaired.status.message();
    // The repaired file may lie there already, and the last step failed.
    const auto st = job.disk->root().Stat(store::DataFile(job.key));
    const bool replaced =
        st.ok() && end.judged && st->st_ino != end.judged->inode;
    if (!proven || replaced) {
      end.failure = transfer::Failure::kDisk;
      end.status = base::Status(end.status.code(), damage);
      return end;
    }
  }
  end.damaged = true;
  end.failure = transfer::Failure::kPermanent;
  end.status = base::DataLossError(damage).WithContext(
      job.disk->path() + "/" + store::DataFile(job.key));
  if (const auto st = job.disk->root().Stat(store::DataFile(job.key));
      st.ok()) {
    // The attempt to repair it gave it another name, which changes ctime.
    store::FileStamp now = store::StampOf(*st);
    if (end.judged && job.repair) end.judged->ctime_ns = now.ctime_ns;
    if (!end.judged || store::Matches(*end.judged, now)) end.judged = now;
  }
  RecordDamage(job);
  return end;
}

void ManagerImpl::RecordDamage(const Job& job) {
  auto record = store::ReadRecord(job.disk->root(), job.key, true);
  if (!record.ok()) {
    if (!job.record) return;
    record = *job.record;
  }
  // No file has it: nobody takes this one for proven again, whoever looks.
  record->stamp.inode = 0;
  const Status written = job.disk->root().ReplaceFile(
      store::RecordFile(job.key), store::EncodeRecord(*record));
  if (!written.ok()) {
    BIM_LOG_WARN(
        "image {} ({}) on disk {}: cannot record that it is damaged: {}",
        job.key.name, job.key.uuid, job.disk_uuid, written.message());
  }
}

ManagerImpl::JobEnd ManagerImpl::Repair(const Job& job) {
  JobEnd end;
  const auto fail = [&](Status status, transfer::Failure failure) {
    end.status = std::move(status);
    end.failure = failure;
    end.ingest.reset();
    ShowIngest(job, nullptr);
    return std::move(end);
  };
  auto known = store::ReadRecord(job.disk->root(), job.key, true);
  if (!known.ok() || known->chunks.empty()) {
    return fail(
        base::FailedPreconditionError("there is no manifest of what it was"),
        transfer::Failure::kPermanent);
  }
  if (known->sha512_pending) {
    return fail(
        base::FailedPreconditionError("what it should be was never proven"),
        transfer::Failure::kPermanent);
  }
  auto file = job.disk->root().OpenFile(store::DataFile(job.key),
                                        O_RDONLY | O_NONBLOCK);
  if (!file.ok()) return fail(file.status(), transfer::Failure::kDisk);
  store::IngestOptions options = IngestOptionsOf(job, "repair");
  options.expect_sha512 = known->sha512;
  const auto reference =
      std::make_shared<const store::ImageRecord>(*std::move(known));
  options.reference = reference;
  end = OpenIngest(job, std::move(options));
  if (!end.ingest) return end;
  // What is still good of the damaged file first; each chunk is compared. Then
  // other copies, also damaged ones.
  const auto own = std::make_shared<std::optional<transfer::LocalImage>>(
      transfer::LocalImage{*std::move(file), *reference});
  const transfer::NextLocalImage others = LocalImages(job, *reference, true);
  const std::shared_ptr<store::Ingest> ingest = end.ingest;
  uint64_t damaged = 0;
  transfer::PeerPullSpec spec;
  spec.pull.connections = options_.transfer.peers.connections;
  spec.pull.limiter = &peer_rate_;
  spec.pull.progress = job.progress.get();
  spec.next_local = [&]() -> std::optional<transfer::LocalImage> {
    if (*own) {
      auto first = std::move(*own);
      own->reset();
      return first;
    }
    if (damaged == 0) {
      for (const io::Extent& range : ingest->Missing()) {
        damaged +=
            store::ChunkCount(range.end - range.begin, reference->chunk_size);
      }
    }
    return others();
  };
  transfer::FoundPeers found;
  if (!job.spec.source.peers.empty()) {
    transfer::PeerQuery query = PeerQueryOf(job);
    query.sha512 = reference->sha512;
    found = transfer::FindPeers(*options_.peers, peer_book_, query,
                                options_.transfer, job.stop);
  }
  // Ours is the manifest that counts.
  found.manifest = reference;
  NoPeers nobody;
  spec.before_commit = [&job] {
    return store::KeepDamaged(*job.disk, job.key);
  };
  end =
      EndPull(job, std::move(end),
              transfer::PullFromPeers(
                  options_.peers ? *options_.peers : nobody, peer_book_, found,
                  *end.ingest, spec, options_.transfer, [] {}, job.stop));
  if (end.record) {
    BIM_LOG_WARN(
        "image {} ({}) on disk {}: repaired, {} of {} chunks were damaged; the "
        "damaged file is kept at {}/{}",
        job.key.name, job.key.uuid, job.disk_uuid, damaged,
        reference->chunks.size(), job.disk->path(),
        store::DamagedFile(job.key));
    end.repaired_chunks = damaged;
    ShowIngest(job, nullptr);
    return end;
  }
  // Nothing of the attempt stays: the next one begins with the damaged file
  // again.
  (void)ingest->Discard();
  return fail(end.status, end.failure);
}

}  // namespace bim::manager
