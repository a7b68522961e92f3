#include "pkg/http/exchange.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <mutex>

#include "pkg/http/ascii.h"
#include "pkg/http/sigpipe.h"

namespace bim::http {
namespace {

using std::chrono::milliseconds;

// Of each request under way. 512 KiB are no faster on the loopback (3-5 GB/s),
// and 32 connections at once then take 8 MB more.
constexpr long kBufferBytes = 256 * 1024;
// What the kernel holds of a request's body and did not send yet: megabytes
// would say nothing of how fast the server takes it.
constexpr int kUnsentBytes = 256 * 1024;
// To the first origin and where it redirects.
constexpr long kKeptConnections = 4;
// All header lines of one request's answers, 1xx heads and trailers included.
constexpr size_t kMaxHeadBytes = 64 * 1024;
constexpr milliseconds kLongestPoll{1000};
// Once the answer is whole: until libcurl must be at its end, too. (It may
// still be sending what the server does not read.)
constexpr milliseconds kEndTimeout{1000};

std::string Milliseconds(milliseconds duration) {
  return std::to_string(duration.count()) + " ms";
}

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

}  // namespace

Multi MakeMulti() {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  Multi multi(curl_multi_init());
  if (multi != nullptr)
    curl_multi_setopt(multi.get(), CURLMOPT_MAXCONNECTS, kKeptConnections);
  return multi;
}

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

Outcome NeverSent(std::string_view what, const std::string& url,
                  const base::Status& status) {
  Outcome outcome;
  outcome.failure = Failure::kPermanent;
  outcome.status = status.WithContext(std::string(what) + " " + RedactUrl(url));
  return outcome;
}

bool Exchange::Fail(Failure failure, base::Status status) {
  if (!failed()) {
    outcome_.failure = failure;
    outcome_.status =
        status.WithContext(std::string(what_) + " " + RedactUrl(url_));
  }
  return false;
}

bool Exchange::Refuse(base::Status status) {
  outcome_.failure = Failure::kRefused;
  outcome_.status = std::move(status);
  return false;
}

bool Exchange::Stopped() {
  if (!stop_.stop_requested()) return false;
  Fail(Failure::kCancelled, base::CancelledError("stopped on request"));
  return true;
}

void Exchange::Enter(Phase phase, Clock::time_point now) {
  phase_ = phase;
  phase_began_ = now;
  pace_.reset();
  if (phase != Phase::kSending && phase != Phase::kBody) return;
  pace_.emplace(Pace::Limits{.stall = deadlines_.stall,
                             .min_rate = deadlines_.min_rate,
                             .window = deadlines_.min_rate_window});
  pace_->Await(now);
}

void Exchange::PausePace() {
  if (pace_) pace_->Pause(Clock::now());
}

void Exchange::ResumePace() {
  if (pace_) pace_->Await(Clock::now());
}

void Exchange::BeginBody(std::optional<uint64_t> announced) {
  announced_ = announced;
  complete_ = announced_ == 0u;
  Enter(Phase::kBody, Clock::now());
}

void Exchange::AddHeader(const std::string& line) {
  curl_slist* list = curl_slist_append(header_list_.get(), line.c_str());
  if (list == nullptr) {
    first_error_ = CURLE_OUT_OF_MEMORY;
    return;
  }
  (void)header_list_.release();  // it is the front of `list` now
  header_list_.reset(list);
}

void Exchange::AddCallersHeader(const std::string& line) {
  const size_t colon = line.find(':');
  // To curl "Name:" means "do not send it", "Name;" an empty value.
  const bool empty = Trim(std::string_view(line).substr(colon + 1)).empty();
  AddHeader(empty ? line.substr(0, colon) + ";" : line);
}

base::Status Exchange::Prepare() {
  easy_.reset(curl_easy_init());
  if (easy_ == nullptr)
    return base::ResourceExhaustedError("libcurl has no memory for a transfer");
  Set(CURLOPT_URL, url_.c_str());
  Set(CURLOPT_ERRORBUFFER, error_text_);
  Set(CURLOPT_NOSIGNAL, 1L);
  Set(CURLOPT_QUICK_EXIT, 1L);  // never wait for a hanging name look-up
  Set(CURLOPT_BUFFERSIZE, kBufferBytes);
  Set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  Set(CURLOPT_HTTP09_ALLOWED, 0L);
  Set(CURLOPT_PROTOCOLS_STR, "http,https");
  Set(CURLOPT_FOLLOWLOCATION, 0L);
  Set(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
  Set(CURLOPT_USERAGENT, "backing-image-manager");
  Set(CURLOPT_HTTP_CONTENT_DECODING, 0L);
  Set(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  Set(CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(deadlines_.connect.count()));
  Set(CURLOPT_TCP_KEEPALIVE, 1L);
  Set(CURLOPT_SSL_VERIFYPEER, 1L);
  Set(CURLOPT_SSL_VERIFYHOST, 2L);
  Set(CURLOPT_SSLVERSION, static_cast<long>(CURL_SSLVERSION_TLSv1_2));
  if (!ca_file_.empty()) {
    Set(CURLOPT_CAINFO, ca_file_.c_str());
    Set(CURLOPT_CAPATH, static_cast<const char*>(nullptr));
  }
  BIM_RETURN_IF_ERROR(Configure());
  Set(CURLOPT_HTTPHEADER, header_list_.get());

  curl_write_callback on_header = [](char* data, size_t size, size_t count,
                                     void* self) -> size_t {
    return static_cast<Exchange*>(self)->TakeHeaderLine({data, size * count})
               ? size * count
               : 0;
  };
  curl_write_callback on_body = [](char* data, size_t size, size_t count,
                                   void* self) -> size_t {
    const auto bytes = std::as_bytes(std::span<const char>(data, size * count));
    if (bytes.empty()) return 0;
    return static_cast<Exchange*>(self)->TakeBody(bytes) ? bytes.size() : 0;
  };
  // Also called for a kept connection.
  curl_prereq_callback on_connected = [](void* self, char*, char*, int, int) {
    auto* exchange = static_cast<Exchange*>(self);
    if (!exchange->OnConnected())
      return static_cast<int>(CURL_PREREQFUNC_ABORT);
    exchange->Enter(exchange->AfterConnecting(), Clock::now());
    return static_cast<int>(CURL_PREREQFUNC_OK);
  };
  curl_sockopt_callback on_socket = [](void*, curl_socket_t socket,
                                       curlsocktype) {
    setsockopt(socket, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kUnsentBytes,
               sizeof(kUnsentBytes));
    return static_cast<int>(CURL_SOCKOPT_OK);
  };
  Set(CURLOPT_SOCKOPTFUNCTION, on_socket);
  void* const self = this;
  Set(CURLOPT_HEADERFUNCTION, on_header);
  Set(CURLOPT_HEADERDATA, self);
  Set(CURLOPT_WRITEFUNCTION, on_body);
  Set(CURLOPT_WRITEDATA, self);
  Set(CURLOPT_PREREQFUNCTION, on_connected);
  Set(CURLOPT_PREREQDATA, self);
  if (first_error_ != CURLE_OK) {
    return base::InternalError(std::string("libcurl refused an option: ") +
                               curl_easy_strerror(first_error_));
  }
  return base::OkStatus();
}

Outcome Exchange::Run(CURLM* multi) {
  const SigpipeBlock no_sigpipe;
  base::Status status =
      multi == nullptr
          ? base::ResourceExhaustedError("libcurl has no memory for a transfer")
          : Prepare();
  if (!status.ok()) {
    Fail(Failure::kPermanent, std::move(status));
    return outcome_;
  }
  if (curl_multi_add_handle(multi, easy_.get()) != CURLM_OK) {
    Fail(Failure::kTransient,
         base::UnavailableError("libcurl could not begin the transfer"));
    return outcome_;
  }
  {
    std::stop_callback wake(stop_, [multi] { curl_multi_wakeup(multi); });
    Drive(multi);
  }
  // In the middle of an answer this closes the connection.
  curl_multi_remove_handle(multi, easy_.get());
  outcome_.http_status = status_;
  outcome_.body_bytes = received_;
  return outcome_;
}

bool Exchange::Over(Clock::time_point now) const {
  if (end_by_ && now >= *end_by_) return true;
  return Decided() && (!linger_until_ || now >= *linger_until_);
}

void Exchange::Drive(CURLM* multi) {
  Enter(Phase::kConnecting, Clock::now());
  while (true) {
    if (Stopped()) return;
    int running = 0;
    const CURLMcode code = curl_multi_perform(multi, &running);
    if (Over(Clock::now())) return;
    if (code != CURLM_OK) {
      Fail(Failure::kTransient,
           base::UnavailableError(curl_multi_strerror(code)));
      return;
    }
    if (running == 0) {
      int left = 0;
      const CURLMsg* message = curl_multi_info_read(multi, &left);
      if (!Decided())
        Conclude(message == nullptr ? CURLE_GOT_NOTHING : message->data.result);
      return;
    }
    const Clock::time_point now = Clock::now();
    const Clock::time_point next = CheckDeadlines(now);
    if (Over(now)) return;
    const auto wait = std::clamp(std::chrono::ceil<milliseconds>(next - now),
                                 milliseconds(1), kLongestPoll);
    curl_multi_poll(multi, nullptr, 0, static_cast<int>(wait.count()), nullptr);
  }
}

Exchange::Clock::time_point Exchange::CheckDeadlines(Clock::time_point now) {
  if (linger_until_) return *linger_until_;
  if (complete_ && !failed()) {
    if (!end_by_) end_by_ = now + kEndTimeout;
    return *end_by_;
  }
  if (complete_at_) {
    if (now >= *complete_at_) complete_ = true;
    return *complete_at_;
  }
  const uint64_t sent = Sent();
  if (pace_) {
    sent_ = sent;
    return CheckPace(now);
  }
  // The last of the request's body may still be on its way.
  if (sent > sent_) phase_began_ = now;
  sent_ = sent;
  const bool connecting = phase_ == Phase::kConnecting;
  const milliseconds limit =
      connecting ? deadlines_.connect : deadlines_.first_byte;
  if (now - phase_began_ < limit) return phase_began_ + limit;
  Fail(
      Failure::kTransient,
      base::DeadlineExceededError(
          connecting ? "connecting: no connection within " + Milliseconds(limit)
                     : "waiting for an answer: no complete answer within " +
                           Milliseconds(limit)));
  return now;
}

std::string Exchange::SoFar() const {
  return Number(received_) +
         (announced_ ? " of " + Number(*announced_) : std::string()) + " bytes";
}

Exchange::Clock::time_point Exchange::CheckPace(Clock::time_point now) {
  const bool sending = phase_ == Phase::kSending;
  const std::string so_far = sending
                                 ? " (" + Number(sent_) + " bytes were sent)"
                                 : " (" + SoFar() + " came)";
  switch (pace_->Look(now, sending ? sent_ : received_)) {
    case Pace::Verdict::kFine:
      break;
    case Pace::Verdict::kStalled:
      Fail(Failure::kTransient,
           base::DeadlineExceededError(
               std::string("stalled: no byte of the body ") +
               (sending ? "was taken" : "came") + " for " +
               Milliseconds(deadlines_.stall) + so_far));
      return now;
    case Pace::Verdict::kDribbling:
      Fail(Failure::kTransient,
           base::DeadlineExceededError(
               "stalled: " + Number(pace_->rate()) + " bytes a second over " +
               Milliseconds(deadlines_.min_rate_window) + ", at least " +
               Number(deadlines_.min_rate) + " are expected" + so_far));
      return now;
  }
  return pace_->NextLook();
}

std::string Exchange::CurlText(CURLcode code) const {
  std::string text =
      error_text_[0] != '\0' ? error_text_ : curl_easy_strerror(code);
  constexpr std::string_view kAfter = " after ";
  const size_t at = text.find(kAfter);
  if (at == std::string::npos) return text;
  const size_t unit = text.find_first_not_of("0123456789", at + kAfter.size());
  for (const std::string_view name : {" milliseconds", " ms"}) {
    if (unit != std::string::npos &&
        text.compare(unit, name.size(), name) == 0) {
      return text.erase(at, unit + name.size() - at);
    }
  }
  return text;
}

// The transfer ended by itself: by the server's close, or by an error.
void Exchange::Conclude(CURLcode code) {
  if (phase_ == Phase::kBody) {
    if (code == CURLE_OK && !announced_) complete_ = true;
    if (complete_) return;
    if (code == CURLE_OK || (code == CURLE_PARTIAL_FILE && announced_)) {
      Fail(
          Failure::kTransient,
          base::UnavailableError("the body ended early: " + SoFar() + " came"));
      return;
    }
    Fail(Failure::kTransient,
         base::UnavailableError("the body ended early, after " + SoFar() +
                                ": " + CurlText(code)));
    return;
  }

  const std::string phase = phase_ == Phase::kConnecting ? "connecting: "
                            : phase_ == Phase::kSending
                                ? "sending the body: "
                                : "waiting for an answer: ";
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
               (ca_file_.empty() ? "" : " in " + ca_file_)));
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
      if (phase_ == Phase::kConnecting) break;
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

std::string Exchange::Field(std::string_view name) const {
  for (auto field = fields_.rbegin(); field != fields_.rend(); ++field) {
    if (EqualsIgnoringCase(field->first, name)) return field->second;
  }
  return "";
}

bool Exchange::TakeHeaderLine(std::string_view line) {
  if (Stopped()) return false;
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
      return true;  // status 0: who reads the head refuses it
    std::from_chars(text.data() + 9, text.data() + 12, status_);
    return true;
  }
  if (text.empty()) {
    in_head_ = false;
    // Informational ones are skipped; the answer is still to come.
    return (status_ >= 100 && status_ < 200 && status_ != 101) || OnHead();
  }
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

bool Exchange::ReadLength(std::optional<uint64_t>& length) {
  length.reset();
  bool chunked = false;
  for (const auto& [name, value] : fields_) {
    if (!EqualsIgnoringCase(name, "Transfer-Encoding")) continue;
    if (EqualsIgnoringCase(value, "identity")) continue;
    if (!EqualsIgnoringCase(value, "chunked")) {
      return Fail(Failure::kPermanent,
                  base::FailedPreconditionError(
                      "the answer has a Transfer-Encoding other than chunked"));
    }
    chunked = true;
  }
  if (chunked) return true;  // it wins over a Content-Length (RFC 9112 6.3)
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

bool Exchange::TakeBody(std::span<const std::byte> data) {
  if (Decided() && linger_until_) return true;  // nobody's
  if (failed() || Stopped()) return false;
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
  PausePace();
  const bool taken = OnBody(data);
  ResumePace();
  if (!taken) return false;
  received_ += data.size();
  if (announced_ == received_) complete_ = true;
  return true;
}

}  // namespace bim::http
