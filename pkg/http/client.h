// HTTP requests: a GET streamed into a sink, and one with a small answer and,
// perhaps, a body to send; each over a connection of its own or a kept one. The
// only header that stands for libcurl.
//
// Get() blocks its thread until the body ended, a deadline passed, the sink
// refused or `stop` was requested (which ends it within 100 ms). It is meant
// for a worker thread. Every phase has a deadline (Deadlines). Retrying is the
// caller's business: an outcome says only what kind of failure it was.
//
// Redirects (301, 302, 303, 307, 308) are followed here, at most
// `max_redirects`, to http and https only; extra headers and netrc are sent to
// the first origin (scheme, host, port) only, never to where it redirects (not
// even when that leads back). Each hop has the deadlines anew.
// HTTP/1.1 only; no content decoding (no Accept-Encoding is sent). The header
// lines of an answer are bounded to 64 KiB. Every Get() makes its connection
// anew and closes it at the last byte that was announced.
//
// Thread-safety: Get() may run on many threads at once.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pkg/base/status.h"

namespace bim::http {

// Content-Range of a 206 (RFC 9110 14.4): bytes first-last/total.
struct ContentRange {
  uint64_t first = 0;
  uint64_t last = 0;  // inclusive
  std::optional<uint64_t> total;
  friend bool operator==(const ContentRange&, const ContentRange&) = default;
};

// Strict: "bytes 0-99/200" or "bytes 0-99/*"; nullopt for anything else
// (also for first > last, or last >= total).
std::optional<ContentRange> ParseContentRange(std::string_view value);

// Retry-After (RFC 9110 10.2.3): delta-seconds or an HTTP-date relative to
// `now`. nullopt when unreadable; negative waits are 0; capped at one day.
std::optional<std::chrono::seconds> ParseRetryAfter(
    std::string_view value, std::chrono::system_clock::time_point now);

struct Deadlines {
  std::chrono::milliseconds connect{30'000};     // name look-up to TLS done
  std::chrono::milliseconds first_byte{60'000};  // request sent to headers read
  std::chrono::milliseconds stall{30'000};  // between two bytes of the body
  // A body that gives less than min_rate bytes a second, averaged over one
  // min_rate_window after another (time in the sink left out), is a stall too
  // ("dribbling"). 0 turns it off.
  uint64_t min_rate = 1024;
  std::chrono::milliseconds min_rate_window{60'000};
};

struct GetRequest {
  std::string url;  // http or https, no user:password@
  // "Name: value" lines, sent to the first origin only.
  std::vector<std::string> headers;
  // A netrc(5) file for the first origin, or empty.
  std::string netrc_file;
  // Ask for [range_begin, range_end) ; range_end without begin means from 0.
  std::optional<uint64_t> range_begin;
  std::optional<uint64_t> range_end;
  // Sent as If-Range with a range: a strong ETag or a Last-Modified date.
  std::string if_range;
  // Proxy URL; empty: what the environment says (http_proxy, https_proxy,
  // no_proxy); "none": no proxy at all, whatever the environment says.
  std::string proxy;
  std::string no_proxy;
  // PEM file with the only CAs to trust for https; empty: the system's.
  std::string ca_file;
  int max_redirects = 10;
  Deadlines deadlines;
};

// What the server said before the body of the final answer.
struct ResponseHead {
  int status = 0;   // 200 or 206 when a sink sees it
  std::string url;  // after redirects, with its query: RedactUrl to show it
  // Absent when the body is chunked or ends with the connection. When present,
  // exactly so many bytes reach the sink, or the outcome is a failure.
  std::optional<uint64_t> content_length;
  std::string content_type;
  std::string content_encoding;
  std::string etag;
  std::string last_modified;
  // Of a 206; nullopt when absent or unreadable. That it is the range asked for
  // is not checked here, nor is it asked that a range gives a 206.
  std::optional<ContentRange> content_range;
  bool accepts_ranges = false;  // Accept-Ranges: bytes
};

// Where a body goes. Called on the thread of Get(), in order.
class Sink {
 public:
  virtual ~Sink() = default;
  // Once, before any data, for a 200 or 206 only. A failure ends the transfer:
  // the outcome is kRefused with that status.
  virtual base::Status OnHead(const ResponseHead& head) = 0;
  // Each piece of the body, never empty, at most 512 KiB (libcurl 7.88 hands
  // out 16 KiB), valid only during the call. May block (backpressure; the stall
  // clock does not run then).
  virtual base::Status OnData(std::span<const std::byte> data) = 0;
};

enum class Failure {
  kNone,       // the whole body arrived
  kTransient,  // 408, 429, 5xx, name look-up or connection failed, reset,
               // stalled, a deadline passed, the body ended early
  kPermanent,  // other statuses (404, 403, 416 ...), bad URL or redirect, TLS
               // certificate refused, more bytes came than were announced
               // (noticed only when they arrive along with the last one), an
               // answer that is not HTTP/1.1 or gives no clear length
  kRefused,    // the sink returned the failure
  kCancelled,  // `stop` was requested
};

struct Outcome {
  Failure failure = Failure::kNone;
  // OK exactly when kNone. The message names the URL without its query and
  // user info, the phase, what was expected and what came. UNAVAILABLE or
  // DEADLINE_EXCEEDED for transient ones; NOT_FOUND for 404 and 410;
  // PERMISSION_DENIED for 401, 403; OUT_OF_RANGE for 416; else
  // FAILED_PRECONDITION / INVALID_ARGUMENT.
  base::Status status;
  int http_status = 0;  // of the last answer, 0 when none came
  std::optional<std::chrono::seconds> retry_after;
  uint64_t body_bytes = 0;
};

// Checks scheme, host and the absence of user info without any I/O.
// INVALID_ARGUMENT says what is wrong.
base::Status CheckUrl(std::string_view url);
// The URL as it may be shown and logged: without query, fragment, user info.
std::string RedactUrl(std::string_view url);

Outcome Get(const GetRequest& request, Sink& sink, std::stop_token stop);

struct PutRequest {
  std::string url;  // http or https, no user:password@
  // "Name: value" lines. Content-Length, Transfer-Encoding and Expect are not
  // the caller's: INVALID_ARGUMENT.
  std::vector<std::string> headers;
  std::string method = "PUT";  // or PATCH, POST, and without a body: GET, HEAD,
                               // DELETE
  // Length of the reader's body; nullopt: chunked. Without meaning where there
  // is no body, or `bytes`.
  std::optional<uint64_t> content_length;
  // The body, instead of the reader: it can be sent again. Borrowed.
  std::optional<std::span<const std::byte>> bytes;
  // Of a PATCH or POST: that the server may get it twice. (The others may be
  // repeated by what they mean.) For Client::Send().
  bool repeatable = false;
  std::string ca_file;
  Deadlines deadlines;
};
// Gives the next bytes of the body: fills a part of `buffer` (about 256 KiB)
// and returns how much; 0 at the end. Not asked again once content_length bytes
// were given. Called on the thread of Put(). May block (no deadline runs then).
// May be empty where nothing is to be read.
// A failure breaks the request off: the outcome is kRefused with it, and
// likewise when it ends before content_length bytes.
using BodyReader = std::function<base::Result<size_t>(std::span<std::byte>)>;

struct PutResult {
  // As of Get(), but an answer of any status is a success here, and redirects
  // are answers.
  Outcome outcome;
  int status = 0;
  std::vector<std::pair<std::string, std::string>>
      fields;        // names in lower case
  std::string body;  // at most 64 KiB of it
};
// One request, with a body for PUT, PATCH and POST, and its answer: for uploads
// and calls. Goes straight to the server, over a connection of its own: no
// proxy. Blocks; ends within 100 ms of a stop, the reader's time left out.
// stall and min_rate are those of the body being sent (as far as the kernel
// took it, which holds at most 256 KiB unsent), then of the answer's;
// first_byte begins when it was sent. An answer that comes before the body was
// sent ends the sending; of its body comes what is there within 1 s. The sink's
// rules on statuses and lengths do not apply, but an unclear length is a
// failure here, too. Thread-safety: may run on many threads at once.
PutResult Put(const PutRequest& request, const BodyReader& body,
              std::stop_token stop);

// As Get() and Put(), but keeps the connection for the next request to the same
// origin when the body was read to its end (a body without a length, or one
// that was broken off, closes it, and so does an answer that came before the
// body of the request was sent). The body of a redirect or a failure is read
// for that by Get(), too, if at most 16 KiB were announced, for at most half a
// second. A kept connection that turns out dead is replaced by a new one
// without a failure, if no line of an answer came; by Send() only where the
// request may be repeated, and only if nothing was asked of its reader yet.
// Else the failure is a transient one. More bytes than announced are not
// noticed here: they can never reach the sink, and the next answer would not be
// readable. Thread-safety: one call at a time per object.
class Client {
 public:
  static std::unique_ptr<Client> Make();
  virtual ~Client() = default;
  virtual Outcome Get(const GetRequest& request, Sink& sink,
                      std::stop_token stop) = 0;
  virtual PutResult Send(const PutRequest& request, const BodyReader& body,
                         std::stop_token stop) = 0;
};

}  // namespace bim::http
