// Put(), of client.h.
#include <algorithm>

#include "pkg/http/ascii.h"
#include "pkg/http/client.h"
#include "pkg/http/exchange.h"
#include "pkg/http/sigpipe.h"

namespace bim::http {
namespace {

constexpr std::string_view kCannotSend = "cannot send to";
constexpr long kSendBufferBytes = 256 * 1024;
constexpr size_t kMaxBodyBytes = 64 * 1024;
// What an answer that came before the body was sent may take to come whole.
constexpr std::chrono::milliseconds kEarlyAnswerTimeout{1000};

base::Status CheckRequest(const PutRequest& request) {
  BIM_RETURN_IF_ERROR(CheckUrl(request.url));
  if (request.method != "PUT" && request.method != "PATCH" &&
      request.method != "HEAD") {
    return base::InvalidArgumentError("the method must be PUT, PATCH or HEAD");
  }
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
         const std::stop_token& stop)
      : Exchange(kCannotSend, request.url, request.deadlines, request.ca_file,
                 stop),
        request_(request),
        body_(body),
        head_only_(request.method == "HEAD"),
        handed_all_(head_only_ || request.content_length == 0u) {}

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
  Phase AfterConnecting() const override {
    return handed_all_ ? Phase::kWaiting : Phase::kSending;
  }
  bool OnHead() override;
  bool OnBody(std::span<const std::byte> data) override;
  uint64_t Sent() override;
  size_t Read(std::span<std::byte> buffer);

  const PutRequest& request_;
  const BodyReader& body_;
  const bool head_only_;
  bool handed_all_;  // libcurl has the whole body
  bool answered_ = false;
  uint64_t handed_ = 0;
  std::string answer_;
};

base::Status Upload::Configure() {
  Set(CURLOPT_PROXY, "");
  Set(CURLOPT_FORBID_REUSE, 1L);
  for (const std::string& line : request_.headers) AddCallersHeader(line);
  if (head_only_) {
    Set(CURLOPT_NOBODY, 1L);
    return base::OkStatus();
  }
  AddHeader("Expect:");
  Set(CURLOPT_UPLOAD, 1L);
  Set(CURLOPT_CUSTOMREQUEST, request_.method.c_str());
  Set(CURLOPT_UPLOAD_BUFFERSIZE, kSendBufferBytes);
  // Of unknown length libcurl makes it chunked.
  Set(CURLOPT_INFILESIZE_LARGE,
      request_.content_length
          ? static_cast<curl_off_t>(*request_.content_length)
          : curl_off_t{-1});
  curl_read_callback on_read = [](char* data, size_t size, size_t count,
                                  void* self) -> size_t {
    return static_cast<Upload*>(self)->Read(
        std::as_writable_bytes(std::span<char>(data, size * count)));
  };
  Set(CURLOPT_READFUNCTION, on_read);
  Set(CURLOPT_READDATA, static_cast<void*>(this));
  return base::OkStatus();
}

uint64_t Upload::Sent() {
  curl_off_t sent = 0;
  curl_easy_getinfo(easy(), CURLINFO_SIZE_UPLOAD_T, &sent);
  return static_cast<uint64_t>(sent);
}

size_t Upload::Read(std::span<std::byte> buffer) {
  if (failed() || Stopped()) return CURL_READFUNC_ABORT;
  // Not the end: the server must not take a part for the whole.
  if (answered_ && !handed_all_) return CURL_READFUNC_PAUSE;
  if (handed_all_) return 0;
  const std::optional<uint64_t>& length = request_.content_length;
  if (length && *length - handed_ < buffer.size())
    buffer = buffer.first(static_cast<size_t>(*length - handed_));
  PausePace();
  base::Result<size_t> read = body_(buffer);
  ResumePace();
  if (!read.ok()) {
    Refuse(read.status());
    return CURL_READFUNC_ABORT;
  }
  BIM_CHECK(*read <= buffer.size());
  handed_ += *read;
  if (length && *read == 0) {
    Refuse(base::FailedPreconditionError("the body to send ended after " +
                                         Number(handed_) + " of " +
                                         Number(*length) + " bytes"));
    return CURL_READFUNC_ABORT;
  }
  handed_all_ = length ? handed_ == *length : *read == 0;
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
  if (head_only_ || status() == 204 || status() == 304) length = 0;
  answered_ = true;
  outcome().retry_after =
      ParseRetryAfter(Field("Retry-After"), std::chrono::system_clock::now());
  BeginBody(length);
  if (!handed_all_) CompleteAt(Clock::now() + kEarlyAnswerTimeout);
  return true;
}

bool Upload::OnBody(std::span<const std::byte> data) {
  const size_t room = kMaxBodyBytes - answer_.size();
  answer_.append(reinterpret_cast<const char*>(data.data()),
                 std::min(room, data.size()));
  if (data.size() > room) Complete();  // the rest is not wanted
  return true;
}

}  // namespace

PutResult Put(const PutRequest& request, const BodyReader& body,
              std::stop_token stop) {
  if (base::Status status = CheckRequest(request); !status.ok())
    return {.outcome = NeverSent(kCannotSend, request.url, status)};
  const SigpipeBlock no_sigpipe;  // the connection is closed here
  const Multi multi = MakeMulti();
  Upload upload(request, body, stop);
  Outcome outcome = upload.Run(multi.get());
  return upload.Result(std::move(outcome));
}

}  // namespace bim::http
