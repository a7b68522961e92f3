// One request and its answer over libcurl, on the caller's thread: connecting,
// the phases and their deadlines, the stop, the reading of heads. What is sent
// and what becomes of the answer is for those who derive from it.
//
// Thread-safety: one thread.
#pragma once

#include <curl/curl.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/http/client.h"
#include "pkg/http/pace.h"

namespace bim::http {

struct MultiDeleter {
  void operator()(CURLM* multi) const { curl_multi_cleanup(multi); }
};
using Multi = std::unique_ptr<CURLM, MultiDeleter>;
// Begins libcurl, once, and makes what drives exchanges and may keep their
// connections. nullptr when there is no memory.
Multi MakeMulti();

// What becomes of the connection once an answer was read.
enum class Afterwards { kClose, kKeep };

// INVALID_ARGUMENT unless it is "Name: value" without anything that could begin
// another line.
base::Status CheckHeaderLine(const std::string& line);
// The outcome of a request that never left. `what`: "cannot get", say.
Outcome NeverSent(std::string_view what, const std::string& url,
                  const base::Status& status);

// Put() over `multi`, which may be nullptr: a failure.
PutResult PutOver(CURLM* multi, Afterwards afterwards,
                  const PutRequest& request, const BodyReader& body,
                  const std::stop_token& stop);

class Exchange {
 public:
  virtual ~Exchange() = default;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // Once. `multi` may be nullptr: a failure.
  Outcome Run(CURLM* multi);

 protected:
  using Clock = Pace::Clock;
  enum class Phase { kConnecting, kSending, kWaiting, kBody };

  // The references outlive the exchange.
  Exchange(std::string_view what, std::string url, const Deadlines& deadlines,
           const std::string& ca_file, const std::stop_token& stop)
      : what_(what),
        url_(std::move(url)),
        deadlines_(deadlines),
        ca_file_(ca_file),
        stop_(stop) {}

  // ---- What the derived one says and does.

  // Further options, by Set and AddHeader.
  virtual base::Status Configure() = 0;
  // There is a connection. Again when a kept one turned out dead and libcurl
  // made a new one. False, and failed: not to be used.
  virtual bool OnConnected() { return true; }
  // The phase behind kConnecting.
  virtual Phase AfterConnecting() const { return Phase::kWaiting; }
  // The final head is there, in status() and Field(). False ends the exchange.
  virtual bool OnHead() = 0;
  // A piece of the body, not empty; counted already. False ends the exchange.
  virtual bool OnBody(std::span<const std::byte> data) = 0;
  // Whether the outcome is known, and nothing more is wanted of the answer.
  // What is not over by itself then closes the connection.
  virtual bool Decided() const { return failed() || complete_; }
  // How much of the request's body was sent.
  virtual uint64_t Sent() { return 0; }

  // ---- What it may use.

  template <typename Value>
  void Set(CURLoption option, Value value) {
    const CURLcode code = curl_easy_setopt(easy_.get(), option, value);
    if (first_error_ == CURLE_OK) first_error_ = code;
  }
  void AddHeader(const std::string& line);
  // The same as the caller gave it: libcurl would not send it without a value.
  void AddCallersHeader(const std::string& line);
  CURL* easy() const { return easy_.get(); }

  // Whether anything of an answer came.
  bool answered() const { return head_bytes_ > 0; }
  int status() const { return status_; }
  const std::string& url() const { return url_; }
  const std::vector<std::pair<std::string, std::string>>& fields() const {
    return fields_;
  }
  // The last field of that name, trimmed; empty when there is none.
  std::string Field(std::string_view name) const;
  // The length of the body, from Content-Length and Transfer-Encoding; nullopt
  // when it is chunked or ends with the connection. False (and failed) when
  // they are unclear.
  bool ReadLength(std::optional<uint64_t>& length);

  void Enter(Phase phase, Clock::time_point now);
  Phase phase() const { return phase_; }
  // Of the phase's body: whether we, or the server, are awaited.
  void PausePace();
  void ResumePace();
  // Once the head is read.
  void BeginBody(std::optional<uint64_t> announced);
  bool complete() const { return complete_; }
  // No more of it is wanted: now, or from then on.
  void Complete() { complete_ = true; }
  void CompleteAt(Clock::time_point when) { complete_at_ = when; }
  // What is left of an answer is read until then, if it is Decided already.
  void LingerUntil(Clock::time_point until) { linger_until_ = until; }

  // Both return false.
  bool Fail(Failure failure, base::Status status);
  bool Refuse(base::Status status);  // what sink or reader said
  bool failed() const { return outcome_.failure != Failure::kNone; }
  // True, and failed.
  bool Stopped();
  Outcome& outcome() { return outcome_; }
  static std::string Number(uint64_t number) { return std::to_string(number); }

 private:
  struct EasyDeleter {
    void operator()(CURL* easy) const { curl_easy_cleanup(easy); }
  };
  struct ListDeleter {
    void operator()(curl_slist* list) const { curl_slist_free_all(list); }
  };

  base::Status Prepare();
  void Drive(CURLM* multi);
  bool Over(Clock::time_point now) const;
  // Fails when a deadline passed; else says when to look again.
  Clock::time_point CheckDeadlines(Clock::time_point now);
  Clock::time_point CheckPace(Clock::time_point now);
  void Conclude(CURLcode code);
  // What curl says, but for how long it took: the same failure is told in the
  // same words each time, so that callers can see that it is the same.
  std::string CurlText(CURLcode code) const;
  std::string SoFar() const;

  // The callbacks. False ends the transfer.
  bool TakeHeaderLine(std::string_view line);
  bool TakeBody(std::span<const std::byte> data);

  const std::string_view what_;
  const std::string url_;
  const Deadlines& deadlines_;
  const std::string& ca_file_;
  const std::stop_token& stop_;

  char error_text_[CURL_ERROR_SIZE] = {};
  std::unique_ptr<curl_slist, ListDeleter> header_list_;
  std::unique_ptr<CURL, EasyDeleter> easy_;
  CURLcode first_error_ = CURLE_OK;

  Phase phase_ = Phase::kConnecting;
  Clock::time_point phase_began_;
  uint64_t sent_ = 0;         // when last looked
  std::optional<Pace> pace_;  // of kSending and kBody
  std::optional<Clock::time_point> linger_until_;
  std::optional<Clock::time_point> complete_at_;
  std::optional<Clock::time_point> end_by_;  // once complete

  size_t head_bytes_ = 0;
  bool in_head_ = false;
  int status_ = 0;
  std::vector<std::pair<std::string, std::string>> fields_;

  std::optional<uint64_t> announced_;  // length of the body
  uint64_t received_ = 0;
  bool complete_ = false;  // the whole body came
  Outcome outcome_;
};

}  // namespace bim::http
