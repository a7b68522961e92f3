#include "pkg/http/client.h"

#include <curl/curl.h>
#include <strings.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <memory>
#include <mutex>
#include <utility>

#include "pkg/http/sigpipe.h"
#include "pkg/http/url.h"

namespace bim::http {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr long kBufferBytes = 512 * 1024;
// All header lines of one request's answers, 1xx heads and trailers included.
constexpr size_t kMaxHeadBytes = 64 * 1024;
constexpr milliseconds kLongestPoll{1000};

struct EasyDeleter {
  void operator()(CURL* easy) const { curl_easy_cleanup(easy); }
};
struct MultiDeleter {
  void operator()(CURLM* multi) const { curl_multi_cleanup(multi); }
};
struct ListDeleter {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};

std::string Number(uint64_t number) { return std::to_string(number); }

std::string Milliseconds(milliseconds duration) {
  return std::to_string(duration.count()) + " ms";
}

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

bool EqualsIgnoringCase(std::string_view a, std::string_view b) {
  return a.size() == b.size() && strncasecmp(a.data(), b.data(), a.size()) == 0;
}

// "Name: value" without anything that could begin another line.
base::Status CheckHeaderLine(const std::string& line) {
  const size_t colon = line.find(':');
  const std::string name = line.substr(0, colon);
  const bool readable =
      colon != std::string::npos && !name.empty() &&
      std::ranges::all_of(name, [](char c) { return c > 0x20 && c < 0x7f; }) &&
      line.find_first_of(std::string_view("\r\n\0", 3)) == std::string::npos;
  if (readable) return base::OkStatus();
  return base::InvalidArgumentError(
      "an extra request header is not of the form 'Name: value' on one line "
      "(it is not shown, it may be secret)");
}

// The value of the Range header, or empty.
base::Result<std::string> RangeValue(const GetRequest& request) {
  if (!request.range_begin && !request.range_end) return std::string();
  const uint64_t begin = request.range_begin.value_or(0);
  if (!request.range_end) return "bytes=" + Number(begin) + "-";
  if (begin >= *request.range_end) {
    return base::InvalidArgumentError("the range [" + Number(begin) + ", " +
                                      Number(*request.range_end) +
                                      ") asked for holds no byte");
  }
  return "bytes=" + Number(begin) + "-" + Number(*request.range_end - 1);
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
class Hop {
 public:
  // The references outlive the hop. `with_secrets`: send extra headers and
  // netrc.
  Hop(const GetRequest& request, std::string url, bool with_secrets, Sink& sink,
      const std::stop_token& stop)
      : request_(request),
        url_(std::move(url)),
        with_secrets_(with_secrets),
        sink_(sink),
        stop_(stop) {}

  Outcome Run();

  // After Run: where to go next; then Run's outcome means nothing.
  const std::optional<std::string>& redirect() const { return redirect_; }

 private:
  enum class Phase { kConnecting, kWaiting, kBody };

  base::Status Configure();
  void Drive();
  void Enter(Phase phase, Clock::time_point now);
  // Fails the hop when a deadline passed; else says when to look again.
  Clock::time_point CheckDeadlines(Clock::time_point now);
  void Conclude(CURLcode code);
  std::string_view PhaseName() const;
  std::string CurlText(CURLcode code) const;

  // The callbacks. False ends the transfer; then failed() or redirect_ or
  // complete_ says how.
  bool OnHeaderLine(std::string_view line);
  bool OnHeadComplete();
  bool OnStatus();
  bool OnBody(std::span<const std::byte> data);
  std::optional<ResponseHead> ReadHead();

  bool Fail(Failure failure, base::Status status);
  bool failed() const { return outcome_.failure != Failure::kNone; }
  // The last field of that name, trimmed; empty when there is none.
  std::string Field(std::string_view name) const;
  // Reads Content-Length into `length`. False (and failed) when unreadable.
  bool ReadContentLength(std::optional<uint64_t>& length);

  const GetRequest& request_;
  const std::string url_;
  const bool with_secrets_;
  Sink& sink_;
  const std::stop_token& stop_;

  char error_text_[CURL_ERROR_SIZE] = {};
  // Destroyed in reverse: the multi handle after the easy one has left it.
  std::unique_ptr<CURLM, MultiDeleter> multi_;
  std::unique_ptr<curl_slist, ListDeleter> header_list_;
  std::unique_ptr<CURL, EasyDeleter> easy_;

  Phase phase_ = Phase::kConnecting;
  Clock::time_point phase_began_;
  size_t head_bytes_ = 0;
  bool in_head_ = false;
  int status_ = 0;
  std::vector<std::pair<std::string, std::string>> fields_;

  std::optional<uint64_t> announced_;  // length of the body
  uint64_t received_ = 0;
  bool complete_ = false;  // all announced bytes came
  Clock::time_point last_byte_;
  Clock::duration in_sink_{0};       // since the body began
  Clock::duration window_began_{0};  // on the clock that stops in the sink
  uint64_t window_bytes_ = 0;        // received_ when the window began

  std::optional<std::string> redirect_;
  Outcome outcome_;
};

bool Hop::Fail(Failure failure, base::Status status) {
  if (!failed()) {
    outcome_.failure = failure;
    outcome_.status = status.WithContext("cannot get " + RedactUrl(url_));
  }
  return false;
}

void Hop::Enter(Phase phase, Clock::time_point now) {
  phase_ = phase;
  phase_began_ = now;
}

std::string_view Hop::PhaseName() const {
  switch (phase_) {
    case Phase::kConnecting:
      return "connecting";
    case Phase::kWaiting:
      return "waiting for an answer";
    case Phase::kBody:
      return "reading the body";
  }
  return "";
}

base::Status Hop::Configure() {
  multi_.reset(curl_multi_init());
  easy_.reset(curl_easy_init());
  if (multi_ == nullptr || easy_ == nullptr)
    return base::ResourceExhaustedError("libcurl has no memory for a transfer");

  CURLcode first_error = CURLE_OK;
  const auto set = [&](CURLoption option, auto value) {
    const CURLcode code = curl_easy_setopt(easy_.get(), option, value);
    if (first_error == CURLE_OK) first_error = code;
  };
  set(CURLOPT_URL, url_.c_str());
  set(CURLOPT_ERRORBUFFER, error_text_);
  set(CURLOPT_NOSIGNAL, 1L);
  set(CURLOPT_QUICK_EXIT, 1L);  // never wait for a hanging name look-up
  set(CURLOPT_BUFFERSIZE, kBufferBytes);
  set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  set(CURLOPT_HTTP09_ALLOWED, 0L);
  set(CURLOPT_PROTOCOLS_STR, "http,https");
  set(CURLOPT_FOLLOWLOCATION, 0L);
  set(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
  set(CURLOPT_USERAGENT, "backing-image-manager");
  set(CURLOPT_HTTP_CONTENT_DECODING, 0L);
  // Bytes are counted here, so that one too many is noticed.
  set(CURLOPT_IGNORE_CONTENT_LENGTH, 1L);
  set(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  set(CURLOPT_CONNECTTIMEOUT_MS,
      static_cast<long>(request_.deadlines.connect.count()));
  set(CURLOPT_TCP_KEEPALIVE, 1L);
  set(CURLOPT_SSL_VERIFYPEER, 1L);
  set(CURLOPT_SSL_VERIFYHOST, 2L);
  set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
  if (!request_.ca_file.empty()) {
    set(CURLOPT_CAINFO, request_.ca_file.c_str());
    set(CURLOPT_CAPATH, static_cast<const char*>(nullptr));
  }
  if (request_.proxy == "none") {
    set(CURLOPT_PROXY, "");
  } else if (!request_.proxy.empty()) {
    set(CURLOPT_PROXY, request_.proxy.c_str());
  }
  if (!request_.no_proxy.empty())
    set(CURLOPT_NOPROXY, request_.no_proxy.c_str());
  if (with_secrets_ && !request_.netrc_file.empty()) {
    set(CURLOPT_NETRC, static_cast<long>(CURL_NETRC_OPTIONAL));
    set(CURLOPT_NETRC_FILE, request_.netrc_file.c_str());
  }

  const auto add_header = [&](const std::string& line) {
    curl_slist* list = curl_slist_append(header_list_.get(), line.c_str());
    if (list == nullptr) {
      first_error = CURLE_OUT_OF_MEMORY;
      return;
    }
    (void)header_list_.release();  // it is the front of `list` now
    header_list_.reset(list);
  };
  if (with_secrets_) {
    for (const std::string& line : request_.headers) {
      const size_t colon = line.find(':');
      // To curl "Name:" means "do not send it", "Name;" an empty value.
      const bool empty = Trim(std::string_view(line).substr(colon + 1)).empty();
      add_header(empty ? line.substr(0, colon) + ";" : line);
    }
  }
  BIM_ASSIGN_OR_RETURN(const std::string range, RangeValue(request_));
  if (!range.empty()) {
    add_header("Range: " + range);
    if (!request_.if_range.empty())
      add_header("If-Range: " + request_.if_range);
  }
  set(CURLOPT_HTTPHEADER, header_list_.get());

  curl_write_callback on_header = [](char* data, size_t size, size_t count,
                                     void* self) -> size_t {
    return static_cast<Hop*>(self)->OnHeaderLine({data, size * count})
               ? size * count
               : 0;
  };
  curl_write_callback on_body = [](char* data, size_t size, size_t count,
                                   void* self) -> size_t {
    const auto bytes = std::as_bytes(std::span<const char>(data, size * count));
    if (bytes.empty()) return 0;
    return static_cast<Hop*>(self)->OnBody(bytes) ? bytes.size() : 0;
  };
  curl_prereq_callback on_connected = [](void* self, char*, char*, int, int) {
    static_cast<Hop*>(self)->Enter(Phase::kWaiting, Clock::now());
    return static_cast<int>(CURL_PREREQFUNC_OK);
  };
  void* const self = this;
  set(CURLOPT_HEADERFUNCTION, on_header);
  set(CURLOPT_HEADERDATA, self);
  set(CURLOPT_WRITEFUNCTION, on_body);
  set(CURLOPT_WRITEDATA, self);
  set(CURLOPT_PREREQFUNCTION, on_connected);
  set(CURLOPT_PREREQDATA, self);
  if (first_error != CURLE_OK) {
    return base::InternalError(std::string("libcurl refused an option: ") +
                               curl_easy_strerror(first_error));
  }
  return base::OkStatus();
}

Outcome Hop::Run() {
  if (base::Status status = Configure(); !status.ok()) {
    Fail(Failure::kPermanent, std::move(status));
    return outcome_;
  }
  if (curl_multi_add_handle(multi_.get(), easy_.get()) != CURLM_OK) {
    Fail(Failure::kTransient,
         base::UnavailableError("libcurl could not begin the transfer"));
    return outcome_;
  }
  {
    std::stop_callback wake(stop_, [this] { curl_multi_wakeup(multi_.get()); });
    Drive();
  }
  curl_multi_remove_handle(multi_.get(), easy_.get());
  outcome_.http_status = status_;
  outcome_.body_bytes = received_;
  return outcome_;
}

void Hop::Drive() {
  Enter(Phase::kConnecting, Clock::now());
  while (true) {
    if (stop_.stop_requested()) {
      Fail(Failure::kCancelled, base::CancelledError("stopped on request"));
      return;
    }
    int running = 0;
    const CURLMcode code = curl_multi_perform(multi_.get(), &running);
    // After all announced bytes one more look at the socket was taken: had more
    // come, OnBody would have failed. The server's close is not awaited.
    if (failed() || redirect_ || complete_) return;
    if (code != CURLM_OK) {
      Fail(Failure::kTransient,
           base::UnavailableError(curl_multi_strerror(code)));
      return;
    }
    if (running == 0) {
      int left = 0;
      const CURLMsg* message = curl_multi_info_read(multi_.get(), &left);
      Conclude(message == nullptr ? CURLE_GOT_NOTHING : message->data.result);
      return;
    }
    const Clock::time_point now = Clock::now();
    const Clock::time_point next = CheckDeadlines(now);
    if (failed()) return;
    const auto wait = std::clamp(std::chrono::ceil<milliseconds>(next - now),
                                 milliseconds(1), kLongestPoll);
    curl_multi_poll(multi_.get(), nullptr, 0, static_cast<int>(wait.count()),
                    nullptr);
  }
}

Clock::time_point Hop::CheckDeadlines(Clock::time_point now) {
  const Deadlines& limits = request_.deadlines;
  if (phase_ != Phase::kBody) {
    const bool connecting = phase_ == Phase::kConnecting;
    const milliseconds limit = connecting ? limits.connect : limits.first_byte;
    if (now - phase_began_ < limit) return phase_began_ + limit;
    Fail(Failure::kTransient,
         base::DeadlineExceededError(
             std::string(PhaseName()) + ": " +
             (connecting ? "no connection" : "no complete answer") +
             " within " + Milliseconds(limit)));
    return now;
  }

  const std::string so_far =
      " (" + Number(received_) +
      (announced_ ? " of " + Number(*announced_) : std::string()) +
      " bytes came)";
  if (now - last_byte_ >= limits.stall) {
    Fail(Failure::kTransient,
         base::DeadlineExceededError("stalled: no byte of the body for " +
                                     Milliseconds(limits.stall) + so_far));
    return now;
  }
  Clock::time_point next = last_byte_ + limits.stall;
  if (limits.min_rate > 0) {
    const Clock::duration active = now - phase_began_ - in_sink_;
    const Clock::duration elapsed = active - window_began_;
    if (elapsed >= limits.min_rate_window) {
      const double seconds = std::chrono::duration<double>(elapsed).count();
      const double rate =
          static_cast<double>(received_ - window_bytes_) / seconds;
      if (rate < static_cast<double>(limits.min_rate)) {
        Fail(Failure::kTransient,
             base::DeadlineExceededError(
                 "stalled: " + Number(static_cast<uint64_t>(rate)) +
                 " bytes a second over " +
                 Milliseconds(limits.min_rate_window) + ", at least " +
                 Number(limits.min_rate) + " are expected" + so_far));
        return now;
      }
      window_began_ = active;
      window_bytes_ = received_;
    }
    next = std::min(
        next, phase_began_ + in_sink_ + window_began_ + limits.min_rate_window);
  }
  return next;
}

std::string Hop::CurlText(CURLcode code) const {
  return error_text_[0] != '\0' ? error_text_ : curl_easy_strerror(code);
}

// The transfer ended by itself: by the server's close, or by an error.
void Hop::Conclude(CURLcode code) {
  const std::string phase = std::string(PhaseName()) + ": ";
  if (phase_ == Phase::kBody) {
    if (code == CURLE_OK && !announced_) {
      complete_ = true;
      return;
    }
    if (code == CURLE_OK || (code == CURLE_PARTIAL_FILE && announced_)) {
      Fail(
          Failure::kTransient,
          base::UnavailableError("the body ended early: " + Number(received_) +
                                 " of " + Number(*announced_) + " bytes came"));
      return;
    }
    const std::string so_far =
        Number(received_) +
        (announced_ ? " of " + Number(*announced_) : std::string()) + " bytes";
    Fail(Failure::kTransient,
         base::UnavailableError("the body ended early, after " + so_far + ": " +
                                CurlText(code)));
    return;
  }

  long connect_status = 0;  // what a proxy answered to CONNECT
  curl_easy_getinfo(easy_.get(), CURLINFO_HTTP_CONNECTCODE, &connect_status);
  if (phase_ == Phase::kConnecting && connect_status >= 400 &&
      connect_status < 500 && connect_status != 408 && connect_status != 429) {
    Fail(Failure::kPermanent, base::FailedPreconditionError(
                                  "the proxy refused to connect, with status " +
                                  std::to_string(connect_status)));
    return;
  }

  switch (code) {
    case CURLE_OPERATION_TIMEDOUT:
      Fail(Failure::kTransient,
           base::DeadlineExceededError(phase + CurlText(code)));
      return;
    case CURLE_URL_MALFORMAT:
      Fail(Failure::kPermanent,
           base::InvalidArgumentError("libcurl cannot read the URL"));
      return;
    case CURLE_SSL_CACERT_BADFILE:
      Fail(Failure::kPermanent,
           base::InvalidArgumentError(
               "cannot read the CA certificates" +
               (request_.ca_file.empty() ? "" : " in " + request_.ca_file)));
      return;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_INVALIDCERTSTATUS:
      Fail(Failure::kPermanent,
           base::FailedPreconditionError(
               "the server's TLS certificate is refused: " + CurlText(code) +
               "; is its CA in the trusted ones?"));
      return;
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_OUT_OF_MEMORY:  // so 7.88 calls a line of over 100 KB
      if (phase_ != Phase::kWaiting) break;
      Fail(Failure::kPermanent,
           base::FailedPreconditionError(
               "the server's answer is not readable as HTTP/1.1: " +
               CurlText(code)));
      return;
    default:
      break;
  }
  Fail(Failure::kTransient, base::UnavailableError(phase + CurlText(code)));
}

std::string Hop::Field(std::string_view name) const {
  for (auto field = fields_.rbegin(); field != fields_.rend(); ++field) {
    if (EqualsIgnoringCase(field->first, name)) return field->second;
  }
  return "";
}

bool Hop::OnHeaderLine(std::string_view line) {
  if (stop_.stop_requested())
    return Fail(Failure::kCancelled,
                base::CancelledError("stopped on request"));
  head_bytes_ += line.size();
  if (head_bytes_ > kMaxHeadBytes) {
    return Fail(Failure::kPermanent,
                base::FailedPreconditionError(
                    "the server's header lines are longer than " +
                    Number(kMaxHeadBytes) + " bytes"));
  }
  if (phase_ == Phase::kBody) return true;  // a trailer
  const std::string_view text = Trim(line);
  if (!in_head_) {  // the status line
    in_head_ = true;
    fields_.clear();
    status_ = 0;
    if (!text.starts_with("HTTP/1.") || text.size() < 12 || text[8] != ' ')
      return true;  // OnHeadComplete refuses it
    std::from_chars(text.data() + 9, text.data() + 12, status_);
    return true;
  }
  if (text.empty()) return OnHeadComplete();
  if ((line.front() == ' ' || line.front() == '\t') && !fields_.empty()) {
    fields_.back().second.append(" ").append(text);  // an old folded line
    return true;
  }
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return true;
  fields_.emplace_back(Trim(text.substr(0, colon)),
                       Trim(text.substr(colon + 1)));
  return true;
}

bool Hop::OnHeadComplete() {
  in_head_ = false;
  if (status_ >= 100 && status_ < 200 && status_ != 101)
    return true;  // informational; the answer is still to come
  if (status_ != 200 && status_ != 206) return OnStatus();
  const std::optional<ResponseHead> head = ReadHead();
  if (!head) return false;
  announced_ = head->content_length;
  if (base::Status status = sink_.OnHead(*head); !status.ok()) {
    outcome_.failure = Failure::kRefused;
    outcome_.status = std::move(status);
    return false;
  }
  last_byte_ = Clock::now();
  Enter(Phase::kBody, last_byte_);
  complete_ = announced_ == 0u;
  return true;
}

// The head of an answer without a body for the sink. Its own body is never
// read.
bool Hop::OnStatus() {
  const std::string answer =
      "the server answered with status " + std::to_string(status_);
  outcome_.retry_after =
      ParseRetryAfter(Field("Retry-After"), std::chrono::system_clock::now());
  switch (status_) {
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
  if (status_ >= 500 && status_ <= 599)
    return Fail(Failure::kTransient, base::UnavailableError(answer));
  return Fail(Failure::kPermanent,
              base::FailedPreconditionError(answer + ", expected 200 or 206"));
}

std::optional<ResponseHead> Hop::ReadHead() {
  ResponseHead head;
  head.status = status_;
  head.url = url_;
  bool chunked = false;
  for (const auto& [name, value] : fields_) {
    if (!EqualsIgnoringCase(name, "Transfer-Encoding")) continue;
    if (EqualsIgnoringCase(value, "identity")) continue;
    if (!EqualsIgnoringCase(value, "chunked")) {
      Fail(Failure::kPermanent,
           base::FailedPreconditionError(
               "the answer has a Transfer-Encoding other than chunked"));
      return std::nullopt;
    }
    chunked = true;
  }
  // With both, chunked wins (RFC 9112 6.3).
  if (!chunked && !ReadContentLength(head.content_length)) return std::nullopt;
  head.content_type = Field("Content-Type");
  head.content_encoding = Field("Content-Encoding");
  head.etag = Field("ETag");
  head.last_modified = Field("Last-Modified");
  if (status_ == 206)
    head.content_range = ParseContentRange(Field("Content-Range"));
  head.accepts_ranges = EqualsIgnoringCase(Field("Accept-Ranges"), "bytes");
  return head;
}

bool Hop::ReadContentLength(std::optional<uint64_t>& length) {
  for (const auto& [name, value] : fields_) {
    if (!EqualsIgnoringCase(name, "Content-Length")) continue;
    // Proxies may join equal lines: "5, 5" (RFC 9110 8.6).
    std::string_view rest = value;
    while (true) {
      const size_t comma = rest.find(',');
      const std::string_view text = Trim(rest.substr(0, comma));
      uint64_t number = 0;
      const auto [end, error] =
          std::from_chars(text.data(), text.data() + text.size(), number);
      if (error != std::errc() || end != text.data() + text.size()) {
        return Fail(Failure::kPermanent,
                    base::FailedPreconditionError(
                        "the server announced an unreadable Content-Length"));
      }
      if (length && *length != number) {
        return Fail(Failure::kPermanent,
                    base::FailedPreconditionError(
                        "the server announced two lengths, " + Number(*length) +
                        " and " + Number(number) + " bytes"));
      }
      length = number;
      if (comma == std::string_view::npos) break;
      rest.remove_prefix(comma + 1);
    }
  }
  return true;
}

bool Hop::OnBody(std::span<const std::byte> data) {
  if (failed()) return false;
  if (stop_.stop_requested())
    return Fail(Failure::kCancelled,
                base::CancelledError("stopped on request"));
  if (phase_ != Phase::kBody) {
    return Fail(Failure::kPermanent,
                base::FailedPreconditionError("a body came before its head"));
  }
  if (announced_ && data.size() > *announced_ - received_) {
    complete_ = false;
    return Fail(Failure::kPermanent,
                base::FailedPreconditionError("the server announced " +
                                              Number(*announced_) +
                                              " bytes and sent more"));
  }
  const Clock::time_point before = Clock::now();
  base::Status status = sink_.OnData(data);
  last_byte_ = Clock::now();
  in_sink_ += last_byte_ - before;
  if (!status.ok()) {
    outcome_.failure = Failure::kRefused;
    outcome_.status = std::move(status);
    return false;
  }
  received_ += data.size();
  complete_ = announced_ == received_;
  return true;
}

Outcome Permanent(const GetRequest& request, const base::Status& status) {
  Outcome outcome;
  outcome.failure = Failure::kPermanent;
  outcome.status = status.WithContext("cannot get " + RedactUrl(request.url));
  return outcome;
}

}  // namespace

Outcome Get(const GetRequest& request, Sink& sink, std::stop_token stop) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  const SigpipeBlock no_sigpipe;

  if (base::Status status = CheckRequest(request); !status.ok())
    return Permanent(request, status);
  std::string url = request.url;
  bool with_secrets = true;
  for (int redirects = 0;; ++redirects) {
    Hop hop(request, url, with_secrets, sink, stop);
    Outcome outcome = hop.Run();
    if (!hop.redirect()) return outcome;

    base::Result<std::string> next = std::string();
    if (redirects >= request.max_redirects) {
      next = base::FailedPreconditionError(
          "more than " + std::to_string(request.max_redirects) + " redirects");
    } else {
      next = ResolveRedirect(url, *hop.redirect());
    }
    if (!next.ok()) {
      Outcome refused = Permanent(request, next.status());
      refused.http_status = outcome.http_status;
      return refused;
    }
    // Once away they stay away, even if another redirect leads back.
    with_secrets = with_secrets && SameOrigin(request.url, *next);
    url = *std::move(next);
  }
}

}  // namespace bim::http
