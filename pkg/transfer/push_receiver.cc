#include "pkg/transfer/push_receiver.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "pkg/base/names.h"
#include "pkg/exec/turns.h"
#include "pkg/http/server.h"

namespace bim::transfer {
namespace {

using base::Code;
using base::Status;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr std::string_view kPrefix = "/v1-ssync/";
constexpr size_t kMaxConnections = 64;
// How far an interval may go beyond the end of the file: senders take them from
// the file system, which rounds up to its blocks.
constexpr uint64_t kMaxBeyond = 64 * 1024;
constexpr uint64_t kMaxDataBytes = 64 << 20;  // of one interval
// What is written at once ends at a multiple of this, so that whole chunks are
// hashed from memory, and zeros in it stay holes.
constexpr size_t kPiece = 1 << 20;
// At the close: how long the requests in flight may stand still, and take.
constexpr milliseconds kCloseStall{10'000};
constexpr milliseconds kCloseTimeout{60'000};
// At the end: how long the last answers may take, and what is left unread of a
// body that was refused (the server drains it so long).
constexpr milliseconds kAnswerTimeout{2'000};
constexpr milliseconds kDrainTimeout{2'000};
// The server does not tell when an answer is on its way.
constexpr milliseconds kAnswerLook{5};

std::string Number(uint64_t number) { return std::to_string(number); }

http::Response Answer(int status, std::string body,
                      std::string content_type = "") {
  http::Response response;
  response.status = status;
  response.body = std::move(body);
  if (!content_type.empty()) response.content_type = std::move(content_type);
  return response;
}

http::Response Json(std::string body) {
  return Answer(200, std::move(body), "application/json");
}

// The value of `name` in a query of plain names and values, given at most once.
base::Result<std::string_view> QueryValue(std::string_view query,
                                          std::string_view name) {
  std::optional<std::string_view> found;
  while (!query.empty()) {
    const std::string_view pair = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), pair.size() + 1));
    const size_t equals = pair.find('=');
    if (pair.substr(0, equals) != name) continue;
    if (found) {
      return base::InvalidArgumentError(std::string(name) +
                                        " is given more than once");
    }
    found = equals == std::string_view::npos ? std::string_view()
                                             : pair.substr(equals + 1);
  }
  return found.value_or(std::string_view());
}

// The same of decimal digits, which must be there.
base::Result<uint64_t> QueryNumber(std::string_view query,
                                   std::string_view name) {
  BIM_ASSIGN_OR_RETURN(const std::string_view text, QueryValue(query, name));
  uint64_t number = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || error != std::errc() ||
      end != text.data() + text.size() || number > INT64_MAX) {
    return base::InvalidArgumentError("expected " + std::string(name) +
                                      " to be a number of bytes, found '" +
                                      base::Printable(text) + "'");
  }
  return number;
}

// The SHA-512 of the whole that a close tells; methods that are not known are
// no concern.
base::Result<std::optional<base::Digest>> ToldSha512(std::string_view query) {
  BIM_ASSIGN_OR_RETURN(const std::string_view method,
                       QueryValue(query, "checksumMethod"));
  BIM_ASSIGN_OR_RETURN(const std::string_view text,
                       QueryValue(query, "checksum"));
  if (method != "sha512" || text.empty()) return std::optional<base::Digest>();
  BIM_ASSIGN_OR_RETURN(
      base::Digest digest,
      base::Digest::FromHex(base::DigestAlgorithm::kSha512, std::string(text)));
  return std::optional(std::move(digest));
}

// What one receive and its requests share. Lives until the last of them is
// gone; uses the ingest only while the server runs.
class PushReceiver : public std::enable_shared_from_this<PushReceiver> {
 public:
  PushReceiver(store::Ingest& ingest, const PushReceiveSpec& spec)
      : ingest_(ingest), spec_(spec) {}

  // On the pool.
  http::Response Handle(const http::Request& request);

  // On the caller's thread: until the sender is done or cannot be any more.
  void Await(const std::function<void()>& on_bytes, std::stop_token stop);
  // Until what is in flight is over and answered, within bounds.
  void Linger(const std::stop_token& stop);
  // Ends what runs.
  void StopWork() { work_.request_stop(); }

  // When the server is gone.
  const Outcome& outcome() const { return outcome_; }
  bool opened() const { return opened_; }
  uint64_t resumed_bytes() const { return resumed_; }
  const std::optional<base::Digest>& told() const { return told_; }

 private:
  class DataTaker;
  class RefusingTaker;

  // A request is being worked at: no stall.
  class Running {
   public:
    explicit Running(PushReceiver& receiver) : receiver_(receiver) {
      receiver_.Count(receiver_.running_, 1);
    }
    ~Running() { receiver_.Count(receiver_.running_, -1); }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;

   private:
    PushReceiver& receiver_;
  };
  // Somebody's body is awaited.
  class Body {
   public:
    explicit Body(std::shared_ptr<PushReceiver> receiver)
        : receiver_(std::move(receiver)) {
      receiver_->Count(receiver_->bodies_, 1);
    }
    ~Body() { receiver_->Count(receiver_->bodies_, -1); }
    Body(const Body&) = delete;
    Body& operator=(const Body&) = delete;
    PushReceiver* operator->() const { return receiver_.get(); }
    PushReceiver& operator*() const { return *receiver_; }

   private:
    const std::shared_ptr<PushReceiver> receiver_;
  };
  struct Interval {
    uint64_t begin = 0;
    uint64_t end = 0;  // within the file
  };
  using Hold = std::unique_ptr<std::byte[]>;  // of kPiece bytes

  void Count(int& counter, int by) {
    std::lock_guard lock(mutex_);
    counter += by;
    last_ = Clock::now();
    changed_.notify_all();
  }
  // They are used again: fresh memory costs more than what is done in it. No
  // more than there are connections.
  Hold TakeHold() {
    std::lock_guard lock(mutex_);
    if (holds_.empty()) return Hold(new std::byte[kPiece]);
    Hold hold = std::move(holds_.back());
    holds_.pop_back();
    return hold;
  }
  void DropHold(Hold hold) {
    std::lock_guard lock(mutex_);
    holds_.push_back(std::move(hold));
  }
  // An answer that is known to be under way.
  http::Response Answered(int status, std::string body);
  http::Response Dispatch(const http::Request& request);
  http::Response Open(const http::Request& request);
  http::Response GetChecksum(const http::Request& request);
  http::Response SendHole(const http::Request& request);
  http::Response WriteData(const http::Request& request);
  http::Response Close(const http::Request& request);
  Status CheckSize(uint64_t size) const;
  Status Begin(uint64_t size);
  base::Result<Interval> ParseInterval(const std::string& query) const;
  // Why no more is taken now; OK: it is.
  Status CheckOpen();
  // The receive has failed, if it had not before. The answer that says so.
  http::Response Fail(Failure failure, const Status& status);
  http::Response Violation(const Status& status) {
    return Fail(Failure::kWrong, status);
  }
  // A failure of the ingest.
  http::Response FailIngest(const Status& status);
  // The answer `refusal`, once the body of the request is out of the way.
  http::Response Refuse(const http::Request& request, http::Response refusal);
  void SetOutcome(Failure failure, Status status);  // locked

  store::Ingest& ingest_;
  const PushReceiveSpec& spec_;
  std::stop_source work_;
  // Each answer holds it until it is sent: who alone has it knows that all are.
  // There is a turn for every connection.
  const std::shared_ptr<exec::Turns> answers_ =
      exec::Turns::Make(kMaxConnections);

  std::mutex open_mutex_;  // one open at a time

  std::mutex mutex_;
  std::condition_variable changed_;
  Outcome outcome_;
  bool opened_ = false;
  bool closed_ = false;
  std::optional<base::Digest> told_;  // of the whole, by the sender
  bool unread_ = false;               // a refused body was not read to its end
  uint64_t size_ = 0;
  uint64_t resumed_ = 0;
  int running_ = 0;
  int bodies_ = 0;
  Clock::time_point last_ = Clock::now();
  std::vector<Hold> holds_;  // of nobody
};

// The body of a request that is refused, so that the sender reads the answer.
class PushReceiver::RefusingTaker final : public http::BodyTaker {
 public:
  RefusingTaker(std::shared_ptr<PushReceiver> receiver, http::Response refusal)
      : receiver_(std::move(receiver)), refusal_(std::move(refusal)) {}

  Status OnData(std::span<const std::byte> data) override {
    const Running running(*receiver_);
    came_ += data.size();
    if (came_ <= kMaxDataBytes) return base::OkStatus();
    std::lock_guard lock(receiver_->mutex_);
    receiver_->unread_ = true;
    return base::InvalidArgumentError("the body is too long");
  }
  http::Response Finish(const Status&) override { return std::move(refusal_); }

 private:
  const Body receiver_;
  http::Response refusal_;
  uint64_t came_ = 0;
};

class PushReceiver::DataTaker final : public http::BodyTaker {
 public:
  DataTaker(std::shared_ptr<PushReceiver> receiver, const Interval& interval)
      : receiver_(std::move(receiver)),
        interval_(interval),
        position_(interval.begin),
        hold_(receiver_->TakeHold()) {}
  ~DataTaker() override { receiver_->DropHold(std::move(hold_)); }

  Status OnData(std::span<const std::byte> data) override {
    const Running running(*receiver_);
    if (data.size() > interval_.end - position_ - held_) {
      std::lock_guard lock(receiver_->mutex_);
      receiver_->unread_ = true;
      return WrongLength("more");
    }
    const std::stop_token stop = receiver_->work_.get_token();
    if (Progress* progress = receiver_->spec_.progress) {
      progress->wire_bytes += data.size();
    }
    exec::RateLimiter* const limiter = receiver_->spec_.limiter;
    if (limiter != nullptr && !limiter->Wait(data.size(), stop)) {
      taken_ = base::CancelledError("stopped");
      return taken_;
    }
    while (!data.empty()) {
      const size_t piece = static_cast<size_t>(
          std::min(kPiece - position_ % kPiece, interval_.end - position_));
      if (held_ == 0 && data.size() >= piece) {
        BIM_RETURN_IF_ERROR(Give(data.first(piece), stop));
        data = data.subspan(piece);
        continue;
      }
      const size_t take = std::min(data.size(), piece - held_);
      std::memcpy(hold_.get() + held_, data.data(), take);
      held_ += take;
      data = data.subspan(take);
      if (held_ == piece) {
        BIM_RETURN_IF_ERROR(
            Give(std::span(hold_.get(), std::exchange(held_, 0)), stop));
      }
    }
    return base::OkStatus();
  }

  http::Response Finish(const Status& status) override {
    const Running running(*receiver_);
    if (!taken_.ok()) {
      return taken_.code() == Code::kCancelled
                 ? receiver_->Answered(503, taken_.message())
                 : receiver_->FailIngest(taken_);
    }
    if (wrong_length_) return receiver_->Violation(status);
    if (!status.ok()) {
      // The connection broke. What came of it counts, and may come again.
      (void)Give(std::span(hold_.get(), held_ / 512 * 512),
                 receiver_->work_.get_token());
      return receiver_->Answered(400, status.message());
    }
    if (position_ == interval_.end) return receiver_->Answered(200, "");
    return receiver_->Violation(
        WrongLength(Number(position_ + held_ - interval_.begin)));
  }

 private:
  Status Give(std::span<const std::byte> data, const std::stop_token& stop) {
    if (data.empty()) return base::OkStatus();
    taken_ = receiver_->ingest_.WriteAt(position_, data, stop);
    if (taken_.ok()) position_ += data.size();
    return taken_;
  }
  Status WrongLength(const std::string& found) {
    wrong_length_ = true;
    return base::InvalidArgumentError(
        "writeData from " + Number(interval_.begin) + " to " +
        Number(interval_.end) + ": expected " +
        Number(interval_.end - interval_.begin) + " bytes, found " + found);
  }

  const Body receiver_;
  const Interval interval_;
  uint64_t position_;  // what is before was given
  Hold hold_;          // of the piece at position_
  size_t held_ = 0;
  Status taken_;  // by the ingest
  bool wrong_length_ = false;
};

// ------------------------------------------------------- the requests

http::Response PushReceiver::Answered(int status, std::string body) {
  http::Response response = Answer(status, std::move(body));
  response.turns = answers_;
  return response;
}

http::Response PushReceiver::Handle(const http::Request& request) {
  const Running running(*this);
  http::Response response = Dispatch(request);
  response.turns = answers_;
  return response;
}

http::Response PushReceiver::Dispatch(const http::Request& request) {
  struct Known {
    std::string_view name;
    std::string_view method;
  };
  static constexpr Known kKnown[] = {
      {"open", "GET"},       {"sendHole", "POST"},
      {"writeData", "POST"}, {"getChecksum", "GET"},
      {"close", "POST"},     {"getRecordedMetadata", "GET"},
  };
  const std::string_view path = request.path;
  const std::string_view name =
      path.starts_with(kPrefix) ? path.substr(kPrefix.size()) : "";
  const auto* known = std::find_if(
      std::begin(kKnown), std::end(kKnown),
      [&](const Known& candidate) { return candidate.name == name; });
  if (known == std::end(kKnown)) {
    return Refuse(request, Answer(404, "there is no " + base::Printable(path)));
  }
  if (request.method != known->method) {
    http::Response refusal =
        Answer(405, std::string(path) + " takes " + std::string(known->method));
    refusal.headers.emplace_back("Allow", known->method);
    return Refuse(request, std::move(refusal));
  }
  if (name == "open") return Open(request);
  if (Status open = CheckOpen(); !open.ok() && name != "close") {
    return Refuse(request, Answer(400, open.message()));
  }
  if (name == "sendHole") return SendHole(request);
  if (name == "writeData") return WriteData(request);
  if (name == "getChecksum") return GetChecksum(request);
  if (name == "getRecordedMetadata") {
    return Answer(404, "no metadata is recorded here");
  }
  return Refuse(request, Close(request));
}

Status PushReceiver::CheckOpen() {
  std::lock_guard lock(mutex_);
  if (!outcome_.status.ok()) {
    return outcome_.status.WithContext("nothing is received any more");
  }
  if (!opened_) {
    return base::FailedPreconditionError("expected " + std::string(kPrefix) +
                                         "open first");
  }
  if (closed_) return base::FailedPreconditionError("the sender closed before");
  return base::OkStatus();
}

Status PushReceiver::CheckSize(uint64_t size) const {
  const uint64_t expected = spec_.expected_size;
  if (expected != 0 && size != expected) {
    return base::FailedPreconditionError(
        "wrong size: expected " + Number(expected) +
        " bytes, the sender's file has " + Number(size));
  }
  if (size == 0 || size % 512 != 0) {
    return base::FailedPreconditionError(
        "wrong size: expected a multiple of 512 bytes, the sender's file has " +
        Number(size));
  }
  if (spec_.max_size != 0 && size > spec_.max_size) {
    return base::FailedPreconditionError(
        "wrong size: expected at most " + Number(spec_.max_size) +
        " bytes (sources.max_image_size), the sender's file has " +
        Number(size));
  }
  return base::OkStatus();
}

Status PushReceiver::Begin(uint64_t size) {
  const bool same =
      ingest_.reference() != nullptr ||
      (!spec_.validator.empty() && ingest_.validator() == spec_.validator);
  const bool goes_on = same && ingest_.begun() && ingest_.total_bytes() == size;
  if (!goes_on) BIM_RETURN_IF_ERROR(ingest_.Begin(size, spec_.validator));
  std::lock_guard lock(mutex_);
  resumed_ = goes_on ? ingest_.stored_bytes() : 0;
  size_ = size;
  opened_ = true;
  changed_.notify_all();
  return base::OkStatus();
}

http::Response PushReceiver::Open(const http::Request& request) {
  const auto begin = QueryNumber(request.query, "begin");
  const auto end = QueryNumber(request.query, "end");
  const Status parsed = begin.ok() ? end.status() : begin.status();
  if (!parsed.ok()) return Violation(parsed.WithContext("open"));
  if (*begin != 0) {
    return Violation(base::InvalidArgumentError(
        "open: expected begin=0, found " + Number(*begin)));
  }
  std::lock_guard one_at_a_time(open_mutex_);
  {
    std::lock_guard lock(mutex_);
    if (!outcome_.status.ok()) {
      return Answer(
          400, "nothing is received any more: " + outcome_.status.message());
    }
  }
  // opened_ and size_ change under open_mutex_ only.
  // `true`: some of it is here, and may be asked for by getChecksum.
  const auto opened = [this] { return Json(resumed_ > 0 ? "true" : "false"); };
  if (opened_ && *end == size_) return opened();
  if (opened_) {
    return Violation(base::FailedPreconditionError(
        "wrong size: the sender opened with " + Number(size_) +
        " bytes before, and now with " + Number(*end)));
  }
  if (Status size = CheckSize(*end); !size.ok()) {
    return Fail(Failure::kPermanent, size);
  }
  if (Status begun = Begin(*end); !begun.ok()) return FailIngest(begun);
  return opened();
}

base::Result<PushReceiver::Interval> PushReceiver::ParseInterval(
    const std::string& query) const {
  BIM_ASSIGN_OR_RETURN(const uint64_t begin, QueryNumber(query, "begin"));
  BIM_ASSIGN_OR_RETURN(const uint64_t end, QueryNumber(query, "end"));
  const std::string found =
      ", found begin " + Number(begin) + " and end " + Number(end);
  if (begin >= size_ || end <= begin || end >= size_ + kMaxBeyond) {
    return base::InvalidArgumentError("expected an interval of a file of " +
                                      Number(size_) + " bytes" + found);
  }
  if (begin % 512 != 0 || (end <= size_ && end % 512 != 0)) {
    return base::InvalidArgumentError("expected multiples of 512" + found);
  }
  return Interval{begin, std::min(end, size_)};
}

http::Response PushReceiver::GetChecksum(const http::Request& request) {
  const auto interval = ParseInterval(request.query);
  if (!interval.ok()) {
    return Violation(interval.status().WithContext("getChecksum"));
  }
  if (interval->end - interval->begin > kMaxDataBytes) return Json("null");
  const Running running(*this);
  const auto digest =
      ingest_.DigestAt(interval->begin, interval->end, work_.get_token());
  // What cannot be read is sent again.
  if (!digest.ok() || !*digest) return Json("null");
  return Json("\"" + (*digest)->Base64() + "\"");
}

http::Response PushReceiver::SendHole(const http::Request& request) {
  const auto interval = ParseInterval(request.query);
  if (!interval.ok()) {
    return Refuse(request,
                  Violation(interval.status().WithContext("sendHole")));
  }
  if (request.content_length != 0u) {
    return Refuse(request, Violation(base::InvalidArgumentError(
                               "sendHole: expected no body, found one")));
  }
  const Status given =
      ingest_.HoleAt(interval->begin, interval->end, work_.get_token());
  if (given.code() == Code::kCancelled) return Answer(503, given.message());
  return given.ok() ? Answer(200, "") : FailIngest(given);
}

http::Response PushReceiver::WriteData(const http::Request& request) {
  const auto interval = ParseInterval(request.query);
  if (!interval.ok()) {
    return Refuse(request,
                  Violation(interval.status().WithContext("writeData")));
  }
  const uint64_t length = interval->end - interval->begin;
  Status status;
  if (length > kMaxDataBytes) {
    status = base::InvalidArgumentError(
        "writeData: expected an interval of at most " + Number(kMaxDataBytes) +
        " bytes, found " + Number(length));
  } else if (request.content_length && *request.content_length != length) {
    status = base::InvalidArgumentError(
        "writeData from " + Number(interval->begin) + " to " +
        Number(interval->end) + ": expected " + Number(length) +
        " bytes, found " + Number(*request.content_length));
  }
  if (!status.ok()) return Refuse(request, Violation(status));
  http::Response response;
  response.taker = std::make_unique<DataTaker>(shared_from_this(), *interval);
  return response;
}

http::Response PushReceiver::Close(const http::Request& request) {
  {
    std::lock_guard lock(mutex_);
    // Senders close what failed as well.
    if (!opened_ && outcome_.status.ok()) {
      return Answer(400, "expected " + std::string(kPrefix) + "open first");
    }
  }
  const auto told = ToldSha512(request.query);
  if (!told.ok()) return Violation(told.status().WithContext("close"));
  std::lock_guard lock(mutex_);
  closed_ = true;
  if (*told && !told_) told_ = *told;
  changed_.notify_all();
  return Answer(200, "");
}

http::Response PushReceiver::Refuse(const http::Request& request,
                                    http::Response refusal) {
  if (request.content_length == 0u || request.method == "GET" ||
      request.method == "HEAD" || request.method == "DELETE") {
    return refusal;
  }
  refusal.turns = answers_;
  http::Response response;
  response.taker =
      std::make_unique<RefusingTaker>(shared_from_this(), std::move(refusal));
  return response;
}

void PushReceiver::SetOutcome(Failure failure, Status status) {
  if (!outcome_.status.ok()) return;
  outcome_.failure = failure;
  outcome_.status = std::move(status);
  changed_.notify_all();
}

http::Response PushReceiver::Fail(Failure failure, const Status& status) {
  {
    std::lock_guard lock(mutex_);
    SetOutcome(failure, status);
  }
  return Answered(failure == Failure::kDisk ? 500 : 400, status.message());
}

http::Response PushReceiver::FailIngest(const Status& status) {
  Failure failure = ClassifyIngest(status);
  // Not proven: another time the same sender may be right.
  if (status.code() == Code::kDataLoss) failure = Failure::kWrong;
  return Fail(failure, status);
}

// ------------------------------------------------------ the whole receive

void PushReceiver::Await(const std::function<void()>& on_bytes,
                         std::stop_token stop) {
  const std::stop_callback wake(stop, [this] {
    StopWork();
    std::lock_guard lock(mutex_);
    changed_.notify_all();
  });
  const Clock::time_point begin = Clock::now();
  bool told = false;
  std::unique_lock lock(mutex_);
  while (outcome_.status.ok() && !closed_) {
    if (stop.stop_requested()) {
      SetOutcome(Failure::kCancelled, base::CancelledError("stopped"));
      return;
    }
    if (opened_ && !told) {
      told = true;
      lock.unlock();
      on_bytes();
      lock.lock();
      continue;
    }
    const Clock::time_point now = Clock::now();
    // (Who holds back a request is not the sender.)
    const Clock::time_point deadline = !opened_ ? begin + spec_.open_timeout
                                       : running_ > 0 ? now + spec_.stall
                                                      : last_ + spec_.stall;
    if (now < deadline) {
      changed_.wait_until(lock, deadline);
      continue;
    }
    if (!opened_ && running_ > 0) {
      // Perhaps the open; it does not take long.
      changed_.wait_for(lock, kAnswerLook);
      continue;
    }
    SetOutcome(Failure::kTransient,
               base::UnavailableError(
                   (opened_ ? "the sender sent nothing for "
                            : "no sender came within ") +
                   Number(static_cast<uint64_t>(
                       (opened_ ? spec_.stall : spec_.open_timeout).count())) +
                   " ms"));
  }
  if (opened_ && !told) {
    lock.unlock();
    on_bytes();
  }
}

void PushReceiver::Linger(const std::stop_token& stop) {
  const Clock::time_point begin = Clock::now();
  {
    const std::stop_callback wake(stop, [this] {
      StopWork();
      std::lock_guard lock(mutex_);
      changed_.notify_all();
    });
    std::unique_lock lock(mutex_);
    while (outcome_.status.ok() && running_ + bodies_ > 0) {
      if (stop.stop_requested()) break;
      const Clock::time_point deadline = std::min(
          begin + kCloseTimeout,
          running_ > 0 ? Clock::now() + kCloseStall : last_ + kCloseStall);
      if (Clock::now() >= deadline) break;
      changed_.wait_until(lock, deadline);
    }
    if (stop.stop_requested()) {
      SetOutcome(Failure::kCancelled, base::CancelledError("stopped"));
    }
    if (outcome_.failure == Failure::kCancelled) return;
  }
  // What is still in flight fails now, and is answered.
  StopWork();
  const Clock::time_point end = Clock::now() + kAnswerTimeout;
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested() && Clock::now() < end &&
         (running_ > 0 || answers_.use_count() > 1)) {
    changed_.wait_for(lock, kAnswerLook);
  }
  const Clock::time_point drained = Clock::now() + kDrainTimeout;
  while (unread_ && !stop.stop_requested() && Clock::now() < drained) {
    changed_.wait_for(lock, kDrainTimeout / 20);
  }
}

uint64_t MissingBytes(store::Ingest& ingest) {
  uint64_t bytes = 0;
  for (const io::Extent& range : ingest.Missing()) {
    bytes += range.end - range.begin;
  }
  return bytes;
}

Outcome FromIngest(Status status) {
  const Failure failure = ClassifyIngest(status);
  return {failure, std::move(status), std::nullopt};
}

// Everything up to the last byte.
Outcome Receive(store::Ingest& ingest, base::UniqueFd listener,
                exec::EventLoop& loop, exec::WorkerPool& pool,
                const PushReceiveSpec& spec,
                const std::function<void()>& on_bytes, PullResult& result,
                const std::stop_token& stop) {
  if (Status restored = RestorePushed(ingest, spec, stop); !restored.ok()) {
    return FromIngest(std::move(restored));
  }
  auto receiver = std::make_shared<PushReceiver>(ingest, spec);
  http::Server::Options options;
  options.max_connections = kMaxConnections;
  auto server = http::Server::Start(
      loop, pool, std::move(listener),
      [receiver](const http::Request& request) {
        return receiver->Handle(request);
      },
      options);
  if (!server.ok()) return {Failure::kPermanent, server.status(), {}};
  receiver->Await(on_bytes, stop);
  receiver->Linger(stop);
  receiver->StopWork();
  server->reset();
  result.resumed_bytes = receiver->resumed_bytes();
  Outcome outcome = receiver->outcome();
  if (outcome.failure != Failure::kNone) {
    // A sender that breaks the rules may have sent anything.
    if (receiver->opened() && (outcome.failure == Failure::kWrong ||
                               outcome.failure == Failure::kPermanent)) {
      (void)ingest.Discard();
    }
    return outcome;
  }
  if (Status settled = ingest.Settle(); !settled.ok()) {
    return FromIngest(std::move(settled));
  }
  const uint64_t size = ingest.total_bytes();
  if (const uint64_t missing = MissingBytes(ingest); missing > 0) {
    return {Failure::kTransient,
            base::UnavailableError(
                "the sender closed early: " + Number(size - missing) + " of " +
                Number(size) + " bytes came"),
            {}};
  }
  if (receiver->told()) ingest.ExpectSha512(*receiver->told());
  return outcome;
}

}  // namespace

Status RestorePushed(store::Ingest& ingest, const PushReceiveSpec& spec,
                     std::stop_token stop) {
  if (ingest.begun()) return base::OkStatus();
  const bool same =
      !spec.validator.empty() && ingest.partial_validator() == spec.validator;
  if (!same && !ingest.reference()) return base::OkStatus();
  if (spec.expected_size != 0 && ingest.partial_size() != spec.expected_size) {
    return base::OkStatus();
  }
  return ingest.Restore(stop);
}

PullResult ReceivePush(store::Ingest& ingest, base::UniqueFd listener,
                       exec::EventLoop& loop, exec::WorkerPool& pool,
                       const PushReceiveSpec& spec,
                       const std::function<void()>& on_bytes,
                       std::stop_token stop) {
  PullResult result;
  result.outcome = Receive(ingest, std::move(listener), loop, pool, spec,
                           on_bytes, result, stop);
  if (result.outcome.failure != Failure::kNone) return result;
  auto record = ingest.Commit(stop);
  if (!record.ok()) {
    result.outcome = FromIngest(record.status());
    // Not proven of the sender's bytes: some were here before.
    if (result.outcome.failure == Failure::kPermanent &&
        result.resumed_bytes > 0) {
      result.outcome.failure = Failure::kWrong;
    }
    return result;
  }
  result.record = *std::move(record);
  return result;
}

}  // namespace bim::transfer
