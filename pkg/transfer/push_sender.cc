#include "pkg/transfer/push_sender.h"

#include <algorithm>
#include <condition_variable>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "pkg/base/names.h"
#include "pkg/hash/hasher.h"
#include "pkg/http/client.h"
#include "pkg/io/dir.h"
#include "pkg/io/sparse.h"

namespace bim::transfer {
namespace {

using base::Result;
using base::Status;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kBatchBytes = 2 << 20;
// Intervals begin and end at its multiples, but for the end of the file.
constexpr uint64_t kSector = 512;
constexpr size_t kReadBytes = 256 << 10;
constexpr milliseconds kOpenPause{200};
// After each failed try of an interval; then it is given up.
constexpr milliseconds kRetryPauses[] = {milliseconds(100), milliseconds(500),
                                         milliseconds(2000)};
// One connection may stand still for so many times `stall` while others move.
constexpr int kStallsOfOne = 4;
// Under a rate there are so many pieces a second, so that it looks smooth.
constexpr uint64_t kPiecesPerSecond = 16;
constexpr uint64_t kLeastPiece = 4 << 10;

struct Interval {
  uint64_t begin = 0;
  uint64_t end = 0;
  bool hole = false;
};

std::string QueryOf(const Interval& interval) {
  return "begin=" + std::to_string(interval.begin) +
         "&end=" + std::to_string(interval.end);
}

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

// Waits for `pause`; false when stopped.
bool Pause(milliseconds pause, const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any never;
  std::unique_lock lock(mutex);
  never.wait_for(lock, stop, pause, [] { return false; });
  return !stop.stop_requested();
}

// The intervals of the file, in ascending order.
class Intervals {
 public:
  explicit Intervals(const PushSpec& spec) : spec_(spec) {}

  Result<std::optional<Interval>> Next() {
    std::lock_guard lock(mutex_);
    if (at_ == spec_.size) return std::optional<Interval>();
    if (at_ >= data_.end) BIM_RETURN_IF_ERROR(FindData());
    Interval next{.begin = at_, .end = data_.begin, .hole = true};
    if (at_ >= data_.begin) {
      next.end = std::min(at_ + kBatchBytes, data_.end);
      next.hole = false;
    }
    BIM_RETURN_IF_ERROR(Check());
    at_ = next.end;
    return std::optional(next);
  }
  // Behind the last one.
  Status CheckAtEnd() {
    std::lock_guard lock(mutex_);
    return Check();
  }

 private:
  Status FindData() {
    BIM_ASSIGN_OR_RETURN(data_, io::NextData(spec_.file, at_, spec_.size));
    if (data_.begin >= data_.end) {
      data_ = {spec_.size, spec_.size};  // the last hole
      return base::OkStatus();
    }
    data_.begin = std::max(at_, data_.begin / kSector * kSector);
    data_.end =
        std::min(spec_.size, (data_.end + kSector - 1) / kSector * kSector);
    return base::OkStatus();
  }
  Status Check() { return spec_.check ? spec_.check() : base::OkStatus(); }

  const PushSpec& spec_;
  std::mutex mutex_;
  io::Extent data_;  // the current or next data
  uint64_t at_ = 0;
};

// How long the receiver has been awaited without anything that moved.
class StallClock {
 public:
  explicit StallClock(milliseconds limit) : limit_(limit) {}

  void Await() {
    std::lock_guard lock(mutex_);
    if (awaiting_++ == 0) moved_ = Clock::now();
  }
  void Done() {
    std::lock_guard lock(mutex_);
    --awaiting_;
    moved_ = Clock::now();
  }
  // When it is a stall, if nothing moves until then.
  Clock::time_point StalledAt() {
    std::lock_guard lock(mutex_);
    return (awaiting_ > 0 ? moved_ : Clock::now()) + limit_;
  }

 private:
  const milliseconds limit_;
  std::mutex mutex_;
  int awaiting_ = 0;
  Clock::time_point moved_;
};

class Sender {
 public:
  explicit Sender(const PushSpec& spec)
      : spec_(spec), intervals_(spec), stall_(spec.deadlines.stall) {}

  Status Run(const std::stop_token& stop);

 private:
  // A connection that is used by one thread.
  class Connection;

  Status CheckSpec() const;
  Status Open(const std::stop_token& stop);
  Status SendAll(const std::stop_token& stop);
  void Work(std::stop_source& end);
  Status SendIntervals(Connection& connection);
  // Of a worker: all is to end.
  void Fail(Status status, std::stop_source& end);
  void Acknowledge(uint64_t bytes);
  Status Close(const std::stop_token& stop);
  void Abort();

  std::string Url(std::string_view what, std::string_view query) const {
    return "http://" + spec_.address + "/v1-ssync/" + std::string(what) + "?" +
           std::string(query);
  }
  // OK: the answer is one, of status 200.
  Status Judge(std::string_view what, const http::PutResult& answer) const;

  const PushSpec& spec_;
  Intervals intervals_;
  StallClock stall_;
  bool was_there_ = false;  // it had the file before

  std::mutex mutex_;
  std::condition_variable changed_;
  size_t running_ = 0;
  Status failure_;
  uint64_t acknowledged_ = 0;
};

class Sender::Connection {
 public:
  Connection(Sender& sender, std::stop_token stop)
      : sender_(sender),
        stop_(std::move(stop)),
        client_(http::Client::Make()) {}

  Status Send(const Interval& interval);

 private:
  // Tried again as long as that may help. The body of the answer, of status
  // 200.
  Result<std::string> Call(std::string_view method, std::string_view what,
                           const Interval& interval);
  http::PutResult Try(const http::PutRequest& request,
                      const Interval& interval);
  // Reads the bytes at `offset` into a part of `buffer`, as the rate allows.
  Result<size_t> Read(uint64_t offset, std::span<std::byte> buffer);
  Result<bool> HasIt(const Interval& interval);

  Sender& sender_;
  const std::stop_token stop_;
  const std::unique_ptr<http::Client> client_;
  std::vector<std::byte> buffer_;  // for hashing
};

Status Sender::CheckSpec() const {
  if (spec_.workers == 0)
    return base::InvalidArgumentError("at least one connection is needed");
  if (spec_.address.find_first_of("/?#@\\ ") != std::string::npos) {
    return base::InvalidArgumentError("the receiver's address '" +
                                      base::Printable(spec_.address) +
                                      "' is not of the form host:port");
  }
  return http::CheckUrl(Url("open", ""));
}

Status Sender::Judge(std::string_view what,
                     const http::PutResult& answer) const {
  const std::string asked(what);
  switch (answer.outcome.failure) {
    case http::Failure::kNone:
      break;
    case http::Failure::kCancelled:
      return base::CancelledError("the sending was stopped");
    case http::Failure::kRefused:
      return answer.outcome.status;  // the file's
    default:
      return answer.outcome.status.WithContext("the receiver's " + asked);
  }
  if (answer.status == 200) return base::OkStatus();
  const std::string_view body = Trim(answer.body);
  const std::string text =
      base::Printable(body.substr(0, body.find_first_of("\r\n")), 200);
  return base::FailedPreconditionError(
      "the receiver " + spec_.address + " answered " + asked + " with status " +
      std::to_string(answer.status) + (text.empty() ? "" : ": " + text));
}

Status Sender::Open(const std::stop_token& stop) {
  const std::unique_ptr<http::Client> client = http::Client::Make();
  const Clock::time_point until = Clock::now() + spec_.deadlines.open_retry;
  http::PutRequest request;
  request.url = Url("open", QueryOf({0, spec_.size}) + "&directIO=false");
  request.method = "GET";
  request.deadlines.connect = spec_.deadlines.connect;
  request.deadlines.first_byte = spec_.deadlines.stall;
  request.deadlines.stall = spec_.deadlines.stall;
  while (true) {
    const http::PutResult answer = client->Send(request, {}, stop);
    const bool failed = answer.outcome.failure == http::Failure::kTransient;
    if (failed && Clock::now() + kOpenPause < until && Pause(kOpenPause, stop))
      continue;
    if (stop.stop_requested())
      return base::CancelledError("the sending was stopped");
    BIM_RETURN_IF_ERROR(Judge("open", answer));
    const std::string_view text = Trim(answer.body);
    if (text != "true" && text != "false") {
      return base::FailedPreconditionError(
          "the receiver " + spec_.address + " answered open with '" +
          base::Printable(text) + "', expected true or false");
    }
    was_there_ = text == "true";
    return base::OkStatus();
  }
}

Result<size_t> Sender::Connection::Read(uint64_t offset,
                                        std::span<std::byte> buffer) {
  if (exec::RateLimiter* limiter = sender_.spec_.limiter) {
    if (const uint64_t rate = limiter->rate(); rate > 0) {
      const uint64_t piece = std::max(rate / kPiecesPerSecond, kLeastPiece);
      buffer = buffer.first(std::min<uint64_t>(piece, buffer.size()));
    }
    if (!limiter->Wait(buffer.size(), stop_))
      return base::CancelledError("the sending was stopped");
  }
  BIM_ASSIGN_OR_RETURN(
      const size_t read,
      io::PreadFull(sender_.spec_.file, buffer.data(), buffer.size(), offset,
                    "cannot read the file to send"));
  if (read != buffer.size()) {
    return base::DataLossError("the file to send became shorter than its " +
                               std::to_string(sender_.spec_.size) + " bytes");
  }
  return read;
}

http::PutResult Sender::Connection::Try(const http::PutRequest& request,
                                        const Interval& interval) {
  StallClock& stall = sender_.stall_;
  uint64_t at = interval.begin;
  const http::BodyReader body =
      [&](std::span<std::byte> buffer) -> Result<size_t> {
    stall.Done();
    if (buffer.size() > kReadBytes) buffer = buffer.first(kReadBytes);
    Result<size_t> read = Read(at, buffer);
    if (read.ok()) at += *read;
    stall.Await();
    return read;
  };
  stall.Await();
  http::PutResult answer = client_->Send(request, body, stop_);
  stall.Done();
  return answer;
}

Result<std::string> Sender::Connection::Call(std::string_view method,
                                             std::string_view what,
                                             const Interval& interval) {
  const PushDeadlines& deadlines = sender_.spec_.deadlines;
  http::PutRequest request;
  request.url = sender_.Url(what, QueryOf(interval));
  request.method = method;
  request.content_length =
      what == "writeData" ? interval.end - interval.begin : 0;
  request.repeatable = true;
  request.deadlines.connect = deadlines.connect;
  request.deadlines.first_byte = deadlines.stall * kStallsOfOne;
  request.deadlines.stall = deadlines.stall * kStallsOfOne;
  request.deadlines.min_rate = 0;
  for (size_t tries = 0;; ++tries) {
    http::PutResult answer = Try(request, interval);
    if (answer.outcome.failure == http::Failure::kTransient &&
        tries < std::size(kRetryPauses) && Pause(kRetryPauses[tries], stop_)) {
      continue;
    }
    if (stop_.stop_requested())
      return base::CancelledError("the sending was stopped");
    BIM_RETURN_IF_ERROR(sender_.Judge(what, answer));
    return std::move(answer.body);
  }
}

Result<bool> Sender::Connection::HasIt(const Interval& interval) {
  BIM_ASSIGN_OR_RETURN(const std::string answer,
                       Call("GET", "getChecksum", interval));
  const std::string_view theirs = Trim(answer);
  if (theirs == "null") return false;
  buffer_.resize(kReadBytes);
  hash::Hasher hasher(base::DigestAlgorithm::kSha512);
  for (uint64_t at = interval.begin; at < interval.end;) {
    const size_t size = std::min<uint64_t>(buffer_.size(), interval.end - at);
    BIM_ASSIGN_OR_RETURN(const size_t read,
                         io::PreadFull(sender_.spec_.file, buffer_.data(), size,
                                       at, "cannot read the file to send"));
    // If it is too short, sending it says so.
    if (read != size) return false;
    hasher.Update(std::span(buffer_).first(size));
    at += size;
  }
  return theirs == "\"" + hasher.Finish().Base64() + "\"";
}

Status Sender::Connection::Send(const Interval& interval) {
  if (interval.hole) return Call("POST", "sendHole", interval).status();
  if (sender_.was_there_) {
    BIM_ASSIGN_OR_RETURN(const bool has_it, HasIt(interval));
    if (has_it) return base::OkStatus();
  }
  return Call("POST", "writeData", interval).status();
}

void Sender::Acknowledge(uint64_t bytes) {
  std::lock_guard lock(mutex_);
  acknowledged_ += bytes;
  if (spec_.on_bytes) spec_.on_bytes(acknowledged_);
}

Status Sender::SendIntervals(Connection& connection) {
  while (true) {
    BIM_ASSIGN_OR_RETURN(const std::optional<Interval> interval,
                         intervals_.Next());
    if (!interval) return base::OkStatus();
    BIM_RETURN_IF_ERROR(connection.Send(*interval));
    Acknowledge(interval->end - interval->begin);
  }
}

void Sender::Fail(Status status, std::stop_source& end) {
  {
    std::lock_guard lock(mutex_);
    if (failure_.ok()) failure_ = std::move(status);
  }
  end.request_stop();
}

void Sender::Work(std::stop_source& end) {
  {
    Connection connection(*this, end.get_token());
    if (Status status = SendIntervals(connection); !status.ok())
      Fail(std::move(status), end);
  }
  std::lock_guard lock(mutex_);
  --running_;
  changed_.notify_all();
}

Status Sender::SendAll(const std::stop_token& stop) {
  std::stop_source end;
  const std::stop_callback both(stop, [&end] { end.request_stop(); });
  running_ = spec_.workers;
  std::vector<std::jthread> threads;
  for (size_t i = 0; i < spec_.workers; ++i)
    threads.emplace_back([this, &end] { Work(end); });
  std::unique_lock lock(mutex_);
  while (running_ > 0) {
    const Clock::time_point stalled_at = stall_.StalledAt();
    if (Clock::now() < stalled_at || end.stop_requested()) {
      changed_.wait_until(
          lock, std::max(stalled_at, Clock::now() + milliseconds(10)));
      continue;
    }
    lock.unlock();
    Fail(base::DeadlineExceededError(
             "the receiver " + spec_.address + " stalled: no byte moved for " +
             std::to_string(spec_.deadlines.stall.count()) + " ms"),
         end);
    lock.lock();
  }
  if (stop.stop_requested())
    return base::CancelledError("the sending was stopped");
  return failure_;
}

Status Sender::Close(const std::stop_token& stop) {
  BIM_RETURN_IF_ERROR(intervals_.CheckAtEnd());
  http::PutRequest request;
  request.url =
      Url("close", spec_.sha512_hex.empty()
                       ? "checksumMethod=&checksum="
                       : "checksumMethod=sha512&checksum=" + spec_.sha512_hex);
  request.method = "POST";
  request.content_length = 0;
  request.deadlines.connect = spec_.deadlines.connect;
  request.deadlines.first_byte = spec_.deadlines.stall;
  request.deadlines.stall = spec_.deadlines.stall;
  for (const milliseconds pause : kRetryPauses) {
    const http::PutResult answer = http::Put(request, {}, stop);
    if (answer.outcome.failure != http::Failure::kTransient)
      return Judge("close", answer);
    if (!Pause(pause, stop))
      return base::CancelledError("the sending was stopped");
  }
  return Judge("close", http::Put(request, {}, stop));
}

void Sender::Abort() {
  http::PutRequest request;
  request.url = Url("close", "checksumMethod=&checksum=");
  request.method = "POST";
  request.content_length = 0;
  const milliseconds part = spec_.deadlines.abort / 3;
  request.deadlines.connect = part;
  request.deadlines.first_byte = part;
  request.deadlines.stall = part;
  // There is nothing to be done when it fails.
  (void)http::Put(request, {}, {});
}

Status Sender::Run(const std::stop_token& stop) {
  BIM_RETURN_IF_ERROR(CheckSpec());
  Status status = Open(stop);
  if (status.ok()) status = SendAll(stop);
  if (status.ok()) status = Close(stop);
  if (!status.ok()) Abort();
  return status;
}

}  // namespace

Status Push(const PushSpec& spec, std::stop_token stop) {
  return Sender(spec).Run(stop);
}

}  // namespace bim::transfer
