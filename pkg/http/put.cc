// Put() and Client::Send(), of client.h.
#include <algorithm>
#include <cstring>

#include "pkg/http/ascii.h"
#include "pkg/http/client.h"
#include "pkg/http/exchange.h"
#include "pkg/http/sigpipe.h"

namespace bim::http {
namespace {

constexpr std::string_view kCannotSend = "cannot send to";
// (Larger ones come fresh from the kernel for each request: page faults.)
constexpr long kSendBufferBytes = 64 * 1024;
constexpr size_t kMaxBodyBytes = 64 * 1024;
// What an answer that came before the body was sent may take to come whole.
constexpr std::chrono::milliseconds kEarlyAnswerTimeout{1000};

bool HasBody(std::string_view method) {
  return method == "PUT" || method == "PATCH" || method == "POST";
}

base::Status CheckRequest(const PutRequest& request, const BodyReader& body) {
  BIM_RETURN_IF_ERROR(CheckUrl(request.url));
  const bool has_body = HasBody(request.method);
  if (!has_body && request.method != "GET" && request.method != "HEAD" &&
      request.method != "DELETE") {
    return base::InvalidArgumentError(
        "the method must be GET, HEAD, PUT, PATCH, POST or DELETE");
  }
  if (!has_body && request.bytes) {
    return base::InvalidArgumentError("a " + request.method +
                                      " has no body to send");
  }
  if (has_body && !request.bytes && request.content_length != 0u && !body)
    return base::InvalidArgumentError("nothing gives the body to send");
  for (const std::string& line : request.headers) {
    BIM_RETURN_IF_ERROR(CheckHeaderLine(line));
    const std::string_view name =
        std::string_view(line).substr(0, line.find(':'));
    for (const std::string_view own :
         {"Content-Length", "Transfer-Encoding", "Expect"}) {
      if (EqualsIgnoringCase(name, own)) {
        return base::InvalidArgumentError("the header " + std::string(own) +
                                          " is not the caller's to send");
      }
    }
  }
  return base::OkStatus();
}

class Upload : public Exchange {
 public:
  // The references outlive the upload.
  Upload(const PutRequest& request, const BodyReader& body,
         Afterwards afterwards, const std::stop_token& stop)
      : Exchange(kCannotSend, request.url, request.deadlines, request.ca_file,
                 stop),
        request_(request),
        body_(body),
        has_body_(HasBody(request.method)),
        keep_(afterwards == Afterwards::kKeep),
        length_(!has_body_      ? 0
                : request.bytes ? request.bytes->size()
                                : request.content_length) {}

  // Before Run: over no kept connection.
  void ConnectAnew() { anew_ = true; }
  // After Run: it failed because a kept connection was dead, and may be
  // repeated.
  bool WantsAnother();
  // After Run.
  PutResult Result(Outcome outcome) {
    PutResult result;
    result.status = status();
    for (const auto& [name, value] : fields())
      result.fields.emplace_back(LowerCase(name), value);
    result.body = std::move(answer_);
    result.outcome = std::move(outcome);
    return result;
  }

 private:
  base::Status Configure() override;
  bool OnConnected() override;
  Phase AfterConnecting() const override {
    return handed_all_ ? Phase::kWaiting : Phase::kSending;
  }
  bool OnHead() override;
  bool OnBody(std::span<const std::byte> data) override;
  bool Decided() const override {
    // To keep the connection libcurl must see the end itself.
    return failed() || (complete() && (!keep_ || broken_off_));
  }
  uint64_t Sent() override;
  size_t Read(std::span<std::byte> buffer);
  base::Result<size_t> ReadSome(std::span<std::byte> buffer);
  bool MayRepeat() const;

  const PutRequest& request_;
  const BodyReader& body_;
  const bool has_body_;
  const bool keep_;
  const std::optional<uint64_t> length_;  // of the body
  bool anew_ = false;
  bool connected_ = false;
  bool handed_all_ = false;  // libcurl has the whole body
  bool head_came_ = false;
  bool broken_off_ = false;  // of the request or the answer not all is wanted
  uint64_t handed_ = 0;
  std::string answer_;
};

base::Status Upload::Configure() {
  Set(CURLOPT_PROXY, "");
  if (!keep_) Set(CURLOPT_FORBID_REUSE, 1L);
  if (anew_) Set(CURLOPT_FRESH_CONNECT, 1L);
  for (const std::string& line : request_.headers) AddCallersHeader(line);
  if (request_.method == "HEAD") Set(CURLOPT_NOBODY, 1L);
  if (request_.method == "DELETE") Set(CURLOPT_CUSTOMREQUEST, "DELETE");
  if (!has_body_) return base::OkStatus();
  AddHeader("Expect:");
  Set(CURLOPT_UPLOAD, 1L);
  Set(CURLOPT_CUSTOMREQUEST, request_.method.c_str());
  Set(CURLOPT_UPLOAD_BUFFERSIZE, kSendBufferBytes);
  // Of unknown length libcurl makes it chunked.
  Set(CURLOPT_INFILESIZE_LARGE,
      length_ ? static_cast<curl_off_t>(*length_) : curl_off_t{-1});
  curl_read_callback on_read = [](char* data, size_t size, size_t count,
                                  void* self) -> size_t {
    return static_cast<Upload*>(self)->Read(
        std::as_writable_bytes(std::span<char>(data, size * count)));
  };
  Set(CURLOPT_READFUNCTION, on_read);
  Set(CURLOPT_READDATA, static_cast<void*>(this));
  // For another connection: OnConnected begins anew.
  curl_seek_callback on_seek = [](void* self, curl_off_t, int) {
    return static_cast<Upload*>(self)->MayRepeat() ? CURL_SEEKFUNC_OK
                                                   : CURL_SEEKFUNC_FAIL;
  };
  Set(CURLOPT_SEEKFUNCTION, on_seek);
  Set(CURLOPT_SEEKDATA, static_cast<void*>(this));
  return base::OkStatus();
}

// libcurl repeats by itself what a kept connection did not take.
bool Upload::OnConnected() {
  if (connected_ && !MayRepeat()) {
    return Fail(Failure::kTransient,
                base::UnavailableError("the kept connection broke before an "
                                       "answer came, and the request is not "
                                       "one to repeat"));
  }
  connected_ = true;
  handed_ = 0;
  handed_all_ = length_ == 0u;
  return true;
}

bool Upload::MayRepeat() const {
  const bool body_again = handed_ == 0 || request_.bytes;
  const bool twice = request_.repeatable ||
                     (request_.method != "POST" && request_.method != "PATCH");
  return body_again && twice;
}

bool Upload::WantsAnother() {
  if (!connected_ || answered() || !MayRepeat() ||
      outcome().status.code() != base::Code::kUnavailable) {
    return false;
  }
  long connections = 0;
  curl_easy_getinfo(easy(), CURLINFO_NUM_CONNECTS, &connections);
  return connections == 0;
}

uint64_t Upload::Sent() {
  curl_off_t sent = 0;
  curl_easy_getinfo(easy(), CURLINFO_SIZE_UPLOAD_T, &sent);
  return static_cast<uint64_t>(sent);
}

base::Result<size_t> Upload::ReadSome(std::span<std::byte> buffer) {
  if (!request_.bytes) return body_(buffer);
  std::memcpy(buffer.data(), request_.bytes->data() + handed_, buffer.size());
  return buffer.size();
}

size_t Upload::Read(std::span<std::byte> buffer) {
  if (failed() || Stopped()) return CURL_READFUNC_ABORT;
  // Not the end: the server must not take a part for the whole.
  if (head_came_ && !handed_all_) return CURL_READFUNC_PAUSE;
  if (handed_all_) return 0;
  if (length_ && *length_ - handed_ < buffer.size())
    buffer = buffer.first(static_cast<size_t>(*length_ - handed_));
  PausePace();
  base::Result<size_t> read = ReadSome(buffer);
  ResumePace();
  if (!read.ok()) {
    Refuse(read.status());
    return CURL_READFUNC_ABORT;
  }
  BIM_CHECK(*read <= buffer.size());
  handed_ += *read;
  if (length_ && *read == 0) {
    Refuse(base::FailedPreconditionError("the body to send ended after " +
                                         Number(handed_) + " of " +
                                         Number(*length_) + " bytes"));
    return CURL_READFUNC_ABORT;
  }
  handed_all_ = length_ ? handed_ == *length_ : *read == 0;
  if (handed_all_) Enter(Phase::kWaiting, Clock::now());
  return *read;
}

bool Upload::OnHead() {
  if (status() < 200 || status() > 599) {
    return Fail(Failure::kPermanent,
                base::FailedPreconditionError(
                    "the server's answer is not readable as HTTP/1.1"));
  }
  std::optional<uint64_t> length;
  if (!ReadLength(length)) return false;
  if (request_.method == "HEAD" || status() == 204 || status() == 304)
    length = 0;
  head_came_ = true;
  outcome().retry_after =
      ParseRetryAfter(Field("Retry-After"), std::chrono::system_clock::now());
  BeginBody(length);
  if (!handed_all_) {
    broken_off_ = true;
    CompleteAt(Clock::now() + kEarlyAnswerTimeout);
  }
  return true;
}

bool Upload::OnBody(std::span<const std::byte> data) {
  const size_t room = kMaxBodyBytes - answer_.size();
  answer_.append(reinterpret_cast<const char*>(data.data()),
                 std::min(room, data.size()));
  if (data.size() > room) {
    broken_off_ = true;  // the rest is not wanted
    Complete();
  }
  return true;
}

}  // namespace

PutResult PutOver(CURLM* multi, Afterwards afterwards,
                  const PutRequest& request, const BodyReader& body,
                  const std::stop_token& stop) {
  if (base::Status status = CheckRequest(request, body); !status.ok())
    return {.outcome = NeverSent(kCannotSend, request.url, status)};
  {
    Upload upload(request, body, afterwards, stop);
    Outcome outcome = upload.Run(multi);
    if (!upload.WantsAnother()) return upload.Result(std::move(outcome));
  }
  Upload another(request, body, afterwards, stop);
  another.ConnectAnew();
  Outcome outcome = another.Run(multi);
  return another.Result(std::move(outcome));
}

PutResult Put(const PutRequest& request, const BodyReader& body,
              std::stop_token stop) {
  const SigpipeBlock no_sigpipe;  // the connection is closed here
  const Multi multi = MakeMulti();
  return PutOver(multi.get(), Afterwards::kClose, request, body, stop);
}

}  // namespace bim::http
