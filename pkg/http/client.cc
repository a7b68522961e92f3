#include "pkg/http/client.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <memory>
#include <utility>

#include "pkg/http/ascii.h"
#include "pkg/http/exchange.h"
#include "pkg/http/sigpipe.h"
#include "pkg/http/url.h"

namespace bim::http {
namespace {

constexpr std::string_view kCannotGet = "cannot get";
// To keep a connection, the body of a redirect or a failure is read when it is
// not longer, for so long.
constexpr uint64_t kMostToSkip = 16 * 1024;
constexpr std::chrono::milliseconds kSkipTimeout{500};

// The value of the Range header, or empty.
base::Result<std::string> RangeValue(const GetRequest& request) {
  if (!request.range_begin && !request.range_end) return std::string();
  const uint64_t begin = request.range_begin.value_or(0);
  if (!request.range_end) return "bytes=" + std::to_string(begin) + "-";
  if (begin >= *request.range_end) {
    return base::InvalidArgumentError(
        "the range [" + std::to_string(begin) + ", " +
        std::to_string(*request.range_end) + ") asked for holds no byte");
  }
  return "bytes=" + std::to_string(begin) + "-" +
         std::to_string(*request.range_end - 1);
}

base::Status CheckRequest(const GetRequest& request) {
  BIM_RETURN_IF_ERROR(CheckUrl(request.url));
  for (const std::string& line : request.headers)
    BIM_RETURN_IF_ERROR(CheckHeaderLine(line));
  BIM_RETURN_IF_ERROR(CheckHeaderLine("If-Range: " + request.if_range));
  BIM_RETURN_IF_ERROR(RangeValue(request).status());
  if (!request.netrc_file.empty() &&
      access(request.netrc_file.c_str(), R_OK) != 0) {
    return base::InvalidArgumentError(
        base::ErrnoError(errno,
                         "cannot read the netrc file " + request.netrc_file)
            .message());
  }
  return base::OkStatus();
}

// One request and its answer: a GET without following redirects.
class Hop : public Exchange {
 public:
  // The references outlive the hop. `with_secrets`: send extra headers and
  // netrc.
  Hop(const GetRequest& request, std::string url, bool with_secrets,
      Afterwards afterwards, Sink& sink, const std::stop_token& stop)
      : Exchange(kCannotGet, std::move(url), request.deadlines, request.ca_file,
                 stop),
        request_(request),
        with_secrets_(with_secrets),
        keep_(afterwards == Afterwards::kKeep),
        sink_(sink) {}

  // After Run: where to go next; then Run's outcome means nothing.
  const std::optional<std::string>& redirect() const { return redirect_; }

 private:
  base::Status Configure() override;
  bool OnHead() override;
  bool OnBody(std::span<const std::byte> data) override;
  bool Decided() const override {
    // Without the length libcurl does not see the end, and took one more look
    // at the socket: had more come, it would have failed. The server's close is
    // not awaited. To keep the connection libcurl must see the end itself.
    return failed() || redirect_ || (complete() && !keep_);
  }

  bool OnStatus();
  bool MayBeSkipped() const;
  std::optional<ResponseHead> ReadHead();

  const GetRequest& request_;
  const bool with_secrets_;
  const bool keep_;
  Sink& sink_;
  std::optional<std::string> redirect_;
};

base::Status Hop::Configure() {
  if (!keep_) {
    // Bytes are counted here, so that one too many is noticed.
    Set(CURLOPT_IGNORE_CONTENT_LENGTH, 1L);
    Set(CURLOPT_FORBID_REUSE, 1L);
  }
  if (request_.proxy == "none") {
    Set(CURLOPT_PROXY, "");
  } else if (!request_.proxy.empty()) {
    Set(CURLOPT_PROXY, request_.proxy.c_str());
  }
  if (!request_.no_proxy.empty())
    Set(CURLOPT_NOPROXY, request_.no_proxy.c_str());
  if (with_secrets_ && !request_.netrc_file.empty()) {
    Set(CURLOPT_NETRC, static_cast<long>(CURL_NETRC_OPTIONAL));
    Set(CURLOPT_NETRC_FILE, request_.netrc_file.c_str());
  }
  if (with_secrets_) {
    for (const std::string& line : request_.headers) AddCallersHeader(line);
  }
  BIM_ASSIGN_OR_RETURN(const std::string range, RangeValue(request_));
  if (!range.empty()) {
    AddHeader("Range: " + range);
    if (!request_.if_range.empty()) AddHeader("If-Range: " + request_.if_range);
  }
  return base::OkStatus();
}

bool Hop::OnHead() {
  if (status() != 200 && status() != 206) {
    OnStatus();
    if (!keep_ || !MayBeSkipped()) return false;
    LingerUntil(Clock::now() + kSkipTimeout);
    return true;
  }
  const std::optional<ResponseHead> head = ReadHead();
  if (!head) return false;
  if (base::Status status = sink_.OnHead(*head); !status.ok())
    return Refuse(std::move(status));
  BeginBody(head->content_length);
  return true;
}

// Of an answer that is not for the sink.
bool Hop::MayBeSkipped() const {
  if (status() == 204 || status() == 304) return true;
  const std::string text = Field("Content-Length");
  uint64_t length = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), length);
  return error == std::errc() && end == text.data() + text.size() &&
         length <= kMostToSkip && Field("Transfer-Encoding").empty();
}

// The head of an answer without a body for the sink. False.
bool Hop::OnStatus() {
  const std::string answer =
      "the server answered with status " + std::to_string(status());
  outcome().retry_after =
      ParseRetryAfter(Field("Retry-After"), std::chrono::system_clock::now());
  switch (status()) {
    case 301:
    case 302:
    case 303:
    case 307:
    case 308:
      redirect_ = Field("Location");
      if (!redirect_->empty()) return false;
      redirect_.reset();
      return Fail(Failure::kPermanent,
                  base::FailedPreconditionError(
                      answer + ", a redirect without a Location"));
    case 401:
    case 403:
      return Fail(Failure::kPermanent, base::PermissionDeniedError(answer));
    case 404:
    case 410:
      return Fail(Failure::kPermanent, base::NotFoundError(answer));
    case 416:
      return Fail(
          Failure::kPermanent,
          base::OutOfRangeError(answer + ": it has no byte of that range"));
    case 408:
    case 429:
      return Fail(Failure::kTransient, base::UnavailableError(answer));
    default:
      break;
  }
  if (status() >= 500 && status() <= 599)
    return Fail(Failure::kTransient, base::UnavailableError(answer));
  return Fail(Failure::kPermanent,
              base::FailedPreconditionError(answer + ", expected 200 or 206"));
}

std::optional<ResponseHead> Hop::ReadHead() {
  ResponseHead head;
  head.status = status();
  head.url = url();
  if (!ReadLength(head.content_length)) return std::nullopt;
  head.content_type = Field("Content-Type");
  head.content_encoding = Field("Content-Encoding");
  head.etag = Field("ETag");
  head.last_modified = Field("Last-Modified");
  if (status() == 206)
    head.content_range = ParseContentRange(Field("Content-Range"));
  head.accepts_ranges = EqualsIgnoringCase(Field("Accept-Ranges"), "bytes");
  return head;
}

bool Hop::OnBody(std::span<const std::byte> data) {
  base::Status status = sink_.OnData(data);
  return status.ok() || Refuse(std::move(status));
}

Outcome GetOver(CURLM* multi, Afterwards afterwards, const GetRequest& request,
                Sink& sink, const std::stop_token& stop) {
  if (base::Status status = CheckRequest(request); !status.ok())
    return NeverSent(kCannotGet, request.url, status);
  std::string url = request.url;
  bool with_secrets = true;
  for (int redirects = 0;; ++redirects) {
    Hop hop(request, url, with_secrets, afterwards, sink, stop);
    Outcome outcome = hop.Run(multi);
    if (!hop.redirect()) return outcome;

    base::Result<std::string> next = std::string();
    if (redirects >= request.max_redirects) {
      next = base::FailedPreconditionError(
          "more than " + std::to_string(request.max_redirects) + " redirects");
    } else {
      next = ResolveRedirect(url, *hop.redirect());
    }
    if (!next.ok()) {
      Outcome refused = NeverSent(kCannotGet, request.url, next.status());
      refused.http_status = outcome.http_status;
      return refused;
    }
    // Once away they stay away, even if another redirect leads back.
    with_secrets = with_secrets && SameOrigin(request.url, *next);
    url = *std::move(next);
  }
}

class ClientImpl : public Client {
 public:
  ~ClientImpl() override {
    const SigpipeBlock no_sigpipe;  // TLS says good-bye
    multi_.reset();
  }
  Outcome Get(const GetRequest& request, Sink& sink,
              std::stop_token stop) override {
    return GetOver(multi(), Afterwards::kKeep, request, sink, stop);
  }
  PutResult Send(const PutRequest& request, const BodyReader& body,
                 std::stop_token stop) override {
    return PutOver(multi(), Afterwards::kKeep, request, body, stop);
  }

 private:
  CURLM* multi() {
    if (multi_ == nullptr) multi_ = MakeMulti();
    return multi_.get();
  }

  Multi multi_;
};

}  // namespace

Outcome Get(const GetRequest& request, Sink& sink, std::stop_token stop) {
  const SigpipeBlock no_sigpipe;  // the connection is closed here
  const Multi multi = MakeMulti();
  return GetOver(multi.get(), Afterwards::kClose, request, sink, stop);
}

std::unique_ptr<Client> Client::Make() {
  return std::make_unique<ClientImpl>();
}

}  // namespace bim::http
