// What others push to us and we to them, by Longhorn's protocol; and the ways
// of a data source to its file: cloning and converting.

#include <fcntl.h>
#include <sys/stat.h>

#include <condition_variable>
#include <thread>

#include "pkg/base/log.h"
#include "pkg/exec/process.h"
#include "pkg/http/listen.h"
#include "pkg/manager/manager_impl.h"
#include "pkg/transfer/push_receiver.h"
#include "pkg/transfer/push_sender.h"

namespace bim::manager {
namespace {

using base::Code;
using base::Result;
using base::Status;
using transfer::Failure;

constexpr std::chrono::seconds kResolveTimeout{5};
// For who was asked to push, to say that it has.
constexpr std::chrono::seconds kAskedGrace{30};

// Asks on a thread of its own while the bytes are awaited.
class Asking {
 public:
  // `ask` ends soon after its token is stopped. `receiving` is stopped when it
  // fails.
  Asking(std::function<Status(std::stop_token)> ask,
         std::stop_source& receiving)
      : thread_([this, ask = std::move(ask), &receiving](std::stop_token stop) {
          Status status = ask(stop);
          std::lock_guard lock(mutex_);
          status_ = std::move(status);
          ended_ = true;
          if (!status_.ok()) receiving.request_stop();
          changed_.notify_all();
        }) {}
  // What it said, at the latest after the grace.
  Status End(std::chrono::seconds grace) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, grace, [&] { return ended_; });
    }
    thread_.request_stop();
    thread_.join();
    return status_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool ended_ = false;
  Status status_;
  std::jthread thread_;
};

}  // namespace

// ------------------------------------------------------------ receiving

bool ManagerImpl::HasToPush(const Job& job) {
  const auto& peers = job.spec.source.peers;
  if (!options_.pushers || peers.size() != 1) return false;
  if (options_.always_push) return true;
  const auto peer =
      options_.peers->Resolve(peers.front(), kResolveTimeout, job.stop);
  return !peer.ok() && peer.status().code() == Code::kFailedPrecondition;
}

ManagerImpl::JobEnd ManagerImpl::Receive(const Job& job) {
  JobEnd end;
  const auto fail = [&](Status status) {
    end.status = std::move(status);
    end.failure =
        job.stop.stop_requested() ? Failure::kCancelled : Failure::kPermanent;
    return std::move(end);
  };
  const SourceSpec& source = job.spec.source;
  const bool ours = source.receive_port != 0;
  const uint16_t first = ours ? source.receive_port : options_.push_port_first;
  const uint16_t last = ours ? source.receive_port : options_.push_port_last;
  std::string asked = source.volume          ? source.volume->address
                      : source.peers.empty() ? ""
                                             : source.peers.front();
  std::string ip = options_.push_ip;
  if (ip.empty() && !asked.empty()) {
    auto own = http::OwnAddressTowards(asked);
    if (!own.ok()) return fail(own.status());
    ip = *std::move(own);
  }
  // Only there where it is awaited; an address that is not ours (it is
  // translated on the way) is listened for everywhere.
  auto listener = http::ListenTcp(ip, first, last);
  if (!listener.ok() && !ip.empty() &&
      listener.status().code() != Code::kResourceExhausted) {
    listener = http::ListenTcp("", first, last);
  }
  if (!listener.ok()) return fail(listener.status());
  const uint16_t port = listener->port;

  end = OpenIngest(job, IngestOptionsOf(job, "push"));
  if (!end.ingest) return end;
  std::stop_source receiving;
  const std::stop_callback forward(job.stop, [&] { receiving.request_stop(); });
  transfer::PushReceiveSpec spec;
  spec.expected_size = source.convert.empty() ? job.spec.size : 0;
  if (source.volume) spec.expected_size = source.volume->size;
  // What is left is gone on with by the next one that pushes it.
  // (What it has is compared with that, interval by interval.) A data source
  // that failed leaves nothing.
  if (job.disk->owned()) spec.validator = "push:" + job.key.uuid;
  spec.max_size = options_.transfer.max_image_size;
  spec.limiter = &peer_rate_;
  spec.progress = job.progress.get();
  // First: who is asked waits no longer than 2 minutes.
  if (Status restored =
          transfer::RestorePushed(*end.ingest, spec, receiving.get_token());
      !restored.ok()) {
    return fail(std::move(restored));
  }
  std::optional<Asking> asking;
  if (source.volume) {
    asking.emplace(
        [&](std::stop_token stop) {
          return options_.pushers->AskExport(*source.volume, ip, port, stop);
        },
        receiving);
  } else if (!asked.empty()) {
    asking.emplace(
        [&](std::stop_token stop) {
          return options_.pushers->AskSend(asked, job.key,
                                           http::JoinHostPort(ip, port), stop);
        },
        receiving);
  }
  transfer::PullResult pulled = transfer::ReceivePush(
      *end.ingest, std::move(listener->fd), loop_, receivers_, spec,
      [&] { JobState(job, CopyState::kInProgress, ""); },
      receiving.get_token());
  const bool came = pulled.record.has_value();
  Status said;
  if (asking) said = asking->End(came ? kAskedGrace : std::chrono::seconds(0));
  end.status = std::move(pulled.outcome.status);
  end.failure = pulled.outcome.failure;
  if (came) {
    end.record = std::move(pulled.record);
    end.ingest.reset();
    return end;
  }
  if (job.stop.stop_requested()) {
    end.failure = Failure::kCancelled;
    return end;
  }
  // Wrong together with what was here before: not to be gone on with.
  if (end.failure == Failure::kWrong) {
    (void)end.ingest->Discard();
    if (pulled.resumed_bytes > 0 && !asked.empty()) {
      // What differs may be what was here: once more, from nothing.
      end.ingest.reset();
      ShowIngest(job, nullptr);
      return Receive(job);
    }
  }
  // Who directs it says when it is tried again.
  if (end.failure == Failure::kTransient ||
      end.failure == Failure::kCancelled || end.failure == Failure::kWrong) {
    end.failure = Failure::kPermanent;
  }
  if (!said.ok() && said.code() != Code::kCancelled) end.status = said;
  if (!asked.empty()) end.status = end.status.WithContext(asked);
  return end;
}

// -------------------------------------------------------------- sending

void ManagerImpl::TouchSent(const ImageKey& key) {
  {
    Lock lock(mutex_);
    const auto it = images_.find(key);
    if (it != images_.end()) Touch(key, it->second);
  }
  Notify();
}

void ManagerImpl::RunSend(const std::string& to, const ImageKey& key,
                          const std::shared_ptr<OpenImage>& image,
                          std::unique_ptr<exec::Turns::Turn> turn) {
  transfer::PushSpec spec;
  spec.address = to;
  spec.file = image->fd.get();
  spec.size = image->stamp.size;
  spec.sha512_hex = image->sha512_hex;
  spec.limiter = image->rate.get();
  spec.check = [&image] {
    struct stat st = {};
    if (::fstat(image->fd.get(), &st) != 0) {
      return base::ErrnoError(errno, "cannot look at the image's file");
    }
    // Not by ctime: that changes, too, when the image is removed meanwhile.
    const store::FileStamp now = store::StampOf(st);
    return now.size == image->stamp.size &&
                   now.mtime_ns == image->stamp.mtime_ns
               ? base::OkStatus()
               : base::FailedPreconditionError(
                     "the image's file was modified and is not ready");
  };
  const Status sent = transfer::Push(spec, stop_calls_.get_token());
  if (sent.ok()) {
    BIM_LOG_INFO("image {} ({}): pushed to {}", key.name, key.uuid, to);
  } else {
    BIM_LOG_WARN("image {} ({}): cannot push it to {}: {}", key.name, key.uuid,
                 to, sent.message());
  }
  turn.reset();
  {
    Lock lock(mutex_);
    --sending_;
  }
  TouchSent(key);
}

Status ManagerImpl::SendDirected(std::string_view disk, std::string_view name,
                                 std::string_view uuid, const std::string& to) {
  BIM_RETURN_IF_ERROR(
      http::ParseHostPort(to).status().WithContext("to_address"));
  BIM_ASSIGN_OR_RETURN(const ImageKey key, KeyOf(name, uuid));
  BIM_ASSIGN_OR_RETURN(const DirectedStatus status,
                       GetDirected(disk, name, uuid));
  if (status.copy.state != CopyState::kReady) {
    return base::FailedPreconditionError(
        "image '" + key.name + "' is " +
        std::string(CopyStateName(status.copy.state)) +
        ": only a ready one can be sent");
  }
  BIM_ASSIGN_OR_RETURN(OpenImage opened,
                       Open(name, uuid, status.copy.disk_uuid));
  const auto image = std::make_shared<OpenImage>(std::move(opened));
  // Nobody waits: who asks is told at once.
  std::unique_ptr<exec::Turns::Turn> turn = image->turns->Take();
  if (!turn) {
    return base::ResourceExhaustedError(
        "image '" + key.name + "' is sent to " +
        std::to_string(options_.readers_per_image) +
        " receivers already: try again when one is done");
  }
  {
    Lock lock(mutex_);
    BIM_RETURN_IF_ERROR(Admit());
    if (sending_ >= kMaxSends) {
      return base::ResourceExhaustedError(
          std::to_string(kMaxSends) +
          " images are sent already: try again when one is done");
    }
    ++sending_;
  }
  const auto held =
      std::make_shared<std::unique_ptr<exec::Turns::Turn>>(std::move(turn));
  if (!senders_.Submit([this, to, key, image, held] {
        RunSend(to, key, image, std::move(*held));
      })) {
    Lock lock(mutex_);
    --sending_;
    return base::UnavailableError("the daemon is stopping");
  }
  TouchSent(key);
  return base::OkStatus();
}

// ------------------------------------------------ cloning and converting

ImageKey ManagerImpl::FileOf(const Job& job) {
  return job.spec.source.convert.empty() ? job.key : store::StagingKey(job.key);
}

ManagerImpl::JobEnd ManagerImpl::ReadDataSource(const Job& job) {
  JobEnd end;
  const auto fail = [&](Status status, Failure failure) {
    end.record.reset();
    end.status = std::move(status);
    end.failure = job.stop.stop_requested() ? Failure::kCancelled : failure;
    return std::move(end);
  };
  ImageKey source = job.key;
  source.place = store::Place::kDataSource;
  const std::string where = job.disk->path() + "/" + store::DataFile(source);
  JobState(job, CopyState::kInProgress, "reading the data source's file");
  auto scanned = store::Scan(*job.disk, source, false, job.stop, nullptr);
  if (!scanned.ok()) {
    const Code code = scanned.status().code();
    const bool wrong = code == Code::kDataLoss || code == Code::kNotFound ||
                       code == Code::kFailedPrecondition;
    return fail(scanned.status().WithContext(where + " is left alone"),
                wrong ? Failure::kPermanent : Failure::kDisk);
  }
  const std::string difference = Difference(job.spec, std::nullopt, *scanned);
  if (!difference.empty()) {
    return fail(base::FailedPreconditionError(
                    where + " is not the file that is wanted (" + difference +
                    ") and is left alone"),
                Failure::kPermanent);
  }
  scanned->origin = "data source, rehashed";
  Status moved = store::WriteRecord(*job.disk, *scanned, "");
  if (moved.ok()) {
    moved = store::MoveImage(*job.disk, source, job.key,
                             ExpectedChecksum(job.spec));
  }
  if (!moved.ok()) return fail(std::move(moved), Failure::kDisk);
  auto found = InspectOn(*job.disk, job.spec);
  if (!found.ok() || found->kind != store::Found::Kind::kReady) {
    return fail(
        base::UnavailableError("the file was touched while it was moved"),
        Failure::kPermanent);
  }
  end.record = std::move(found->record);
  return end;
}

ManagerImpl::JobEnd ManagerImpl::ClaimDataSource(const Job& job) {
  JobEnd end;
  const auto fail = [&](Status status, Failure failure) {
    end.status = std::move(status);
    end.failure = job.stop.stop_requested() ? Failure::kCancelled : failure;
    return std::move(end);
  };
  // The data source gives its file up for good: a restart must go on with it.
  ImageSpec spec = job.spec;
  spec.source.data_source = true;
  if (Status put = job.disk->PutDesired(job.key, EncodeDesired(Desired{spec}));
      !put.ok()) {
    return fail(std::move(put), Failure::kDisk);
  }
  DirectedSpec given;
  given.size = spec.size;
  given.sha512 = spec.sha512;
  given.claim_data_source = job.claim_data_source;
  const auto moved = TakeDataSource(*job.disk, given, job.key);
  if (!moved.ok()) return fail(moved.status(), Failure::kPermanent);
  if (!*moved) return ReadDataSource(job);
  auto found = InspectOn(*job.disk, spec);
  if (!found.ok() || found->kind != store::Found::Kind::kReady) {
    return fail(
        base::UnavailableError("the file was touched while it was moved"),
        Failure::kPermanent);
  }
  end.record = std::move(found->record);
  return end;
}

ManagerImpl::JobEnd ManagerImpl::Clone(const Job& job) {
  JobEnd end;
  const auto fail = [&](Status status, Failure failure) {
    end.status = std::move(status);
    end.failure = failure;
    return std::move(end);
  };
  const ImageKey from{job.spec.source.clone_name, job.spec.source.clone_uuid};
  const io::Dir& root = job.disk->root();
  const std::string where = job.disk->path() + "/" + store::DataFile(from);
  auto file = root.OpenFile(store::DataFile(from), O_RDONLY | O_NONBLOCK);
  if (!file.ok()) {
    return fail(file.status().WithContext("the image to clone"),
                Failure::kPermanent);
  }
  struct stat st = {};
  if (::fstat(file->get(), &st) != 0 || !S_ISREG(st.st_mode)) {
    return fail(base::FailedPreconditionError(where + " is no regular file"),
                Failure::kPermanent);
  }
  // Proven by its record, or by what passes through here.
  store::ImageRecord record;
  auto known = store::ReadRecord(root, from, true);
  const bool proven =
      known.ok() && store::Matches(known->stamp, store::StampOf(st));
  if (proven) record = *std::move(known);
  record.stamp = store::StampOf(st);
  if (proven && job.spec.source.convert.empty() && job.spec.sha512 &&
      *job.spec.sha512 != record.sha512) {
    return fail(
        base::FailedPreconditionError("wrong checksum: expected SHA-512 " +
                                      job.spec.sha512->Hex() + ", found " +
                                      record.sha512.Hex() + " at " + where),
        Failure::kPermanent);
  }
  JobState(job, CopyState::kInProgress, "");
  if (proven && !record.sha512_pending) {
    store::ImageRecord cloned = record;
    cloned.origin = "clone";
    auto reflinked =
        store::Reflink(*job.disk, FileOf(job), file->get(), cloned,
                       options_.file_mode, ExpectedChecksum(job.spec));
    if (reflinked.ok()) {
      end.record = *std::move(reflinked);
      return end;
    }
    if (reflinked.status().code() != Code::kUnimplemented) {
      return fail(reflinked.status(), Failure::kDisk);
    }
  }
  store::IngestOptions options = IngestOptionsOf(job, "clone");
  if (!record.chunks.empty()) {
    options.reference = std::make_shared<const store::ImageRecord>(record);
  }
  end = OpenIngest(job, std::move(options));
  if (!end.ingest) return end;
  const auto source =
      transfer::MakeFileSource(*std::move(file), std::move(record));
  return EndPull(job, std::move(end),
                 transfer::Pull(
                     *source, *end.ingest, {}, [] {}, job.stop));
}

ManagerImpl::JobEnd ManagerImpl::Convert(const Job& job, JobEnd end) {
  const std::string& wanted = job.spec.source.convert;
  // One that was there already is what it should be.
  if (wanted.empty() || !end.record ||
      end.record->key.uuid != FileOf(job).uuid) {
    return end;
  }
  const ImageKey staged = FileOf(job);
  const store::Disk& disk = *job.disk;
  const std::string format = end.record->format == "qcow2" ? "qcow2" : "raw";
  const store::ImageRecord source = *std::move(end.record);
  end = JobEnd();
  const auto fail = [&](Status status, Failure failure) {
    end.record.reset();
    end.status = std::move(status);
    end.failure = job.stop.stop_requested() ? Failure::kCancelled : failure;
    return std::move(end);
  };
  if (format == wanted) {
    const std::string difference = Difference(job.spec, std::nullopt, source);
    if (!difference.empty()) {
      (void)store::RemoveImage(disk, staged, true);
      return fail(base::FailedPreconditionError(difference),
                  Failure::kPermanent);
    }
    if (Status moved =
            store::MoveImage(disk, staged, job.key, ExpectedChecksum(job.spec));
        !moved.ok()) {
      return fail(std::move(moved), Failure::kDisk);
    }
    auto found = InspectOn(disk, job.spec);
    if (!found.ok() || found->kind != store::Found::Kind::kReady) {
      return fail(base::UnavailableError("the file was touched while it was "
                                         "moved"),
                  Failure::kDisk);
    }
    end.record = std::move(found->record);
    return end;
  }
  JobState(job, CopyState::kInProgress, "converting to " + wanted);
  const io::Dir& root = disk.root();
  auto from = root.OpenFile(store::DataFile(staged), O_RDONLY | O_NONBLOCK);
  if (!from.ok()) return fail(from.status(), Failure::kDisk);
  if (Status removed = store::RemovePartial(disk, job.key); !removed.ok()) {
    return fail(std::move(removed), Failure::kDisk);
  }
  auto to =
      root.OpenFile(store::TempFile(job.key), O_RDWR | O_CREAT | O_EXCL, 0600);
  if (!to.ok()) return fail(to.status(), Failure::kDisk);
  exec::ProcessSpec process;
  process.arguments = {"qemu-img",
                       "convert",
                       "-f",
                       format,
                       "-O",
                       wanted,
                       "-S",
                       "4k",
                       "/proc/self/fd/3",
                       "/proc/self/fd/4"};
  process.descriptors = {from->get(), to->get()};
  process.max_file_size = options_.transfer.max_image_size;
  if (Status ran = exec::RunProcess(process, job.stop); !ran.ok()) {
    (void)store::RemovePartial(disk, job.key);
    // A full disk is not told by an exit code.
    const auto space = disk.GetSpace();
    const bool full = space.ok() && space->available_bytes < (1 << 20);
    return fail(
        ran.WithContext("cannot convert it from " + format + " to " + wanted),
        full ? Failure::kDisk : Failure::kPermanent);
  }
  auto adopted =
      store::AdoptTemp(disk, job.key,
                       {.expect_sha512 = job.spec.sha512,
                        .file_mode = options_.file_mode,
                        .origin = source.origin + ", converted from " + format,
                        .shown_checksum = ExpectedChecksum(job.spec)},
                       job.stop, [](uint64_t) {});
  if (!adopted.ok()) {
    const Failure failure = transfer::ClassifyIngest(adopted.status());
    return fail(adopted.status(), failure);
  }
  end.record = *std::move(adopted);
  if (Status removed = store::RemoveImage(disk, staged, true); !removed.ok()) {
    BIM_LOG_WARN("{}", removed.message());
  }
  return end;
}

}  // namespace bim::manager
