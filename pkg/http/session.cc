#include "pkg/http/session.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/fields.hpp>
#include <boost/beast/http/read.hpp>
#include <cerrno>
#include <charconv>
#include <string_view>

#include "pkg/http/ascii.h"
#include "pkg/http/sigpipe.h"
#include "pkg/http/target.h"

namespace bim::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using boost::system::error_code;
using std::chrono::milliseconds;

constexpr size_t kMaxHeadBytes = 16 * 1024;
// One turn of a body on the pool: bounded, so that connections take turns.
constexpr uint64_t kSliceBytes = 1024 * 1024;
// How long a refused request may still arrive before the connection is closed
// over it, closing at once could lose the answer; and how many bytes of it are
// read. What comes then is left to lie: the client cannot send on.
constexpr milliseconds kDrainTimeout{2000};
constexpr size_t kMaxDrainBytes = 16 * 1024 * 1024;
// Under a rate there are so many slices a second, so that it looks smooth.
constexpr uint64_t kSlicesPerSecond = 16;
constexpr uint64_t kLeastSliceBytes = 1024;
// Who waits because of the rate looks so often whether it was changed.
constexpr milliseconds kRateLook{250};
constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";

std::string ChunkOf(const std::string& piece) {
  char size[16];
  const auto [end, error] =
      std::to_chars(size, size + sizeof(size), piece.size(), 16);
  std::string chunk;
  chunk.reserve(piece.size() + sizeof(size) + 4);
  chunk.append(size, end).append("\r\n").append(piece).append("\r\n");
  return chunk;
}

}  // namespace

Session::Session(std::shared_ptr<ServerCore> core,
                 ServerCore::Protocol::socket socket)
    : alive_(core),
      core_(std::move(core)),
      socket_(std::move(socket)),
      timer_(core_->loop.context()),
      buffer_(kMaxHeadBytes) {}

Session::~Session() { LetGo(); }

void Session::Start() {
  error_code ignored;
  socket_.native_non_blocking(true, ignored);
  const int on = 1;  // fails on unix sockets, where it is not needed
  setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_NODELAY, &on,
             sizeof(on));
  ReadHead();
}

void Session::Close() {
  // A body that ends with the connection must not look whole.
  if (!closed_ && !busy_ && answer_.maker != nullptr && !answer_.chunked) {
    Reset();
    return;
  }
  if (!closed_) {
    closed_ = true;
    Disarm();
    // Not close: the pool may be about to use the number. This breaks what it
    // does and what waits here.
    ::shutdown(socket_.native_handle(), SHUT_RDWR);
  }
  if (!busy_) End();  // else what ends busy_ comes here again
}

void Session::Reset() {
  BIM_CHECK(!busy_);
  closed_ = true;
  Disarm();
  // No shutdown before it: that would look like a regular end.
  const linger reset{1, 0};
  setsockopt(socket_.native_handle(), SOL_SOCKET, SO_LINGER, &reset,
             sizeof(reset));
  End();
}

void Session::End() {
  error_code ignored;
  socket_.close(ignored);
  LetGo();
  core_->Unwait(*this);
  core_->Remove(shared_from_this());
}

void Session::LetGo() {
  if (std::optional<Response> waiting = StopAwaitingTurn())
    Discard(*std::move(waiting));
  if (taker_ != nullptr)
    core_->Discard(std::shared_ptr<BodyTaker>(std::move(taker_)));
  if (answer_.maker != nullptr)
    core_->Discard(std::shared_ptr<BodyMaker>(std::move(answer_.maker)));
  // The last close of a file that was removed frees its blocks.
  if (answer_.file)
    core_->Discard(std::make_shared<base::UniqueFd>(std::move(answer_.file)));
  body_.reset();
  answer_ = {};
  pace_.reset();
  turn_.reset();
}

void Session::Discard(Response response) {
  if (response.taker == nullptr && response.maker == nullptr &&
      !response.file && !response.later) {
    return;
  }
  core_->Discard(std::make_shared<Response>(std::move(response)));
}

void Session::Arm(Clock::time_point when, Work work) {
  timer_.expires_at(when);
  timer_.async_wait([self = shared_from_this(), round = ++timer_round_,
                     work](error_code error) {
    // It may have been armed anew after this call was queued.
    if (error || self->closed_ || round != self->timer_round_) return;
    (*self.*work)();
  });
}

void Session::Disarm() {
  ++timer_round_;
  timer_.cancel();
}

bool Session::HasUnread() {
  int unread = 0;
  if (ioctl(socket_.native_handle(), FIONREAD, &unread) == 0 && unread > 0)
    return true;
  // Behind the previous one; else what lies here is a part of a head.
  const auto read = buffer_.data();
  const std::string_view text(static_cast<const char*>(read.data()),
                              read.size());
  return text.find("\r\n\r\n") != std::string_view::npos;
}

template <typename OnThePool, typename Then>
void Session::OnPool(OnThePool work, Then then) {
  busy_ = true;
  const bool submitted =
      core_->Submit([weak = weak_from_this(), work = std::move(work),
                     then = std::move(then)] {
        // Holding the session keeps the descriptors open.
        std::shared_ptr<Session> self = weak.lock();
        if (self == nullptr) return;
        auto result = std::make_shared<decltype(work(*self))>(work(*self));
        exec::EventLoop& loop = self->core_->loop;
        // Moved along, so that the session ends on the loop.
        loop.Post([self = std::move(self), result, then]() mutable {
          self->busy_ = false;
          if (self->closed_) {
            self->core_->Discard(std::move(result));
            self->Close();
          } else {
            then(*self, std::move(*result));
          }
        });
      });
  if (submitted) return;
  busy_ = false;
  Close();  // the daemon is going down
}

// --------------------------------------------------------- the request

void Session::ReadHead() {
  parser_.emplace();
  parser_->header_limit(kMaxHeadBytes);
  parser_->body_limit(boost::none);  // who takes a body says how much
  asked_ = {};
  takes_body_ = has_body_ = continue_ = drain_ = false;
  Arm(core_->options.head_timeout, &Session::Close);
  beast::http::async_read_header(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](error_code error, size_t) {
        self->OnHead(error);
      });
  core_->Wait(*this);
}

void Session::OnHead(error_code error) {
  if (closed_) return;
  Disarm();
  core_->Unwait(*this);
  using HeadError = beast::http::error;
  if (error == HeadError::header_limit || error == HeadError::buffer_overflow) {
    Refuse(431, "the request head is longer than 16 KiB");
    return;
  }
  if (error) {
    const error_code sample = HeadError::bad_method;
    const bool unreadable = error.category() == sample.category() &&
                            error != HeadError::end_of_stream &&
                            error != HeadError::partial_message;
    if (unreadable) {
      Refuse(400, "the request head is not readable as HTTP/1.1");
    } else {
      Close();
    }
    return;
  }

  const auto& head = parser_->get();
  using Name = beast::http::field;
  using Verb = beast::http::verb;
  const auto field = [&](Name name) {
    return head.count(name) == 1 ? std::string(head[name]) : std::string();
  };
  asked_.keep_alive = parser_->keep_alive();
  asked_.old_client = head.version() < 11;
  asked_.head_only = head.method() == Verb::head;
  const bool reads = head.method() == Verb::get || asked_.head_only;
  takes_body_ = head.method() == Verb::put || head.method() == Verb::patch ||
                head.method() == Verb::post;
  const bool coded = head.count(Name::transfer_encoding) > 0;
  has_body_ = coded || parser_->content_length().value_or(0) > 0;
  if (!reads && !takes_body_ && head.method() != Verb::delete_) {
    drain_ = has_body_;
    if (has_body_) asked_.keep_alive = false;
    const std::string allowed = "GET, HEAD, PUT, PATCH, POST, DELETE";
    Response refusal =
        PlainAnswer(405, "expected one of the methods " + allowed);
    refusal.headers.emplace_back("Allow", allowed);
    Reply(std::move(refusal));
    return;
  }
  if (has_body_ && !takes_body_) {
    Refuse(413, "a GET, HEAD or DELETE with a body is not taken here");
    return;
  }
  // Of an unclear length must be what this server and one before it could
  // read differently (RFC 9112 6.1).
  if (coded &&
      (asked_.old_client ||
       !EqualsIgnoringCase(field(Name::transfer_encoding), "chunked"))) {
    Refuse(asked_.old_client ? 400 : 501,
           "the only transfer coding taken here is chunked, of HTTP/1.1");
    return;
  }
  if (!asked_.old_client && head.count(Name::host) != 1) {
    Refuse(400, "the request needs one Host header");
    return;
  }
  std::optional<Target> target =
      ParseTarget(std::string_view(head.target().data(), head.target().size()));
  if (!target) {
    Refuse(400, "the request's path is unreadable");
    return;
  }
  continue_ = has_body_ && !asked_.old_client &&
              EqualsIgnoringCase(field(Name::expect), "100-continue");
  Request request;
  request.method = std::string(head.method_string());
  request.path = std::move(target->path);
  request.raw_path = std::move(target->raw_path);
  request.query = std::move(target->query);
  request.range = field(Name::range);
  if (reads) {
    asked_.range = request.range;
    asked_.if_range = field(Name::if_range);
  } else if (takes_body_ && !coded) {
    request.content_length = parser_->content_length().value_or(0);
  }
  for (const auto& line : head) {
    const auto name = line.name_string();
    request.fields.emplace_back(
        LowerCase(std::string(name.data(), name.size())),
        std::string(line.value()));
  }
  OnPool(
      [request = std::move(request)](Session& self) {
        try {
          return self.core_->handler()(request);
        } catch (...) {
          return PlainAnswer(500, "the request failed unexpectedly");
        }
      },
      [](Session& self, Response response) {
        self.OnHandled(std::move(response));
      });
}

void Session::Refuse(int status, std::string text) {
  asked_.keep_alive = false;
  drain_ = true;
  Reply(PlainAnswer(status, std::move(text)));
}

void Session::OnHandled(Response response) {
  if (!takes_body_ || response.taker == nullptr) {
    drain_ = has_body_;
    if (has_body_) asked_.keep_alive = false;
    Reply(std::move(response));
    return;
  }
  taker_ = std::move(response.taker);
  Discard(std::move(response));
  if (!has_body_) {
    OnPool([](Session& self) { return self.FinishOnPool(base::OkStatus()); },
           [](Session& self, Taken taken) { self.OnTaken(std::move(taken)); });
    return;
  }
  body_.emplace(*parser_, buffer_);
  // A client that sends already awaits nothing.
  if (continue_ && buffer_.size() == 0) {
    SendContinue();
  } else {
    ReadBody();
  }
}

// ------------------------------------------------------------ its body

void Session::SendContinue() {
  Arm(core_->options.send_timeout, &Session::OnSilent);
  awaiting_body_ = true;
  asio::async_write(socket_, asio::buffer(kContinue),
                    [self = shared_from_this()](error_code error, size_t) {
                      self->OnAwaited(error, &Session::AwaitBody);
                    });
}

void Session::ReadBody() {
  OnPool([](Session& self) { return self.TakeOnPool(); },
         [](Session& self, Taken taken) { self.OnTaken(std::move(taken)); });
}

void Session::AwaitBody() {
  awaiting_body_ = true;
  Arm(core_->options.send_timeout, &Session::OnSilent);
  socket_.async_wait(asio::socket_base::wait_read,
                     [self = shared_from_this()](error_code error) {
                       self->OnAwaited(error, &Session::ReadBody);
                     });
}

// The wait is over: on to what is `next`, unless it was for nothing.
void Session::OnAwaited(error_code error, void (Session::*next)()) {
  if (closed_ || !awaiting_body_) return;
  awaiting_body_ = false;
  Disarm();
  if (error) {
    LoseBody("the connection broke");
  } else {
    (this->*next)();
  }
}

void Session::OnSilent() {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(
      core_->options.send_timeout);
  LoseBody("nothing came for " + std::to_string(seconds.count()) + " s");
}

// The connection is of no use any more; the taker hears of it.
void Session::LoseBody(const std::string& why) {
  awaiting_body_ = false;
  OnPool(
      [why](Session& self) {
        return self.FinishOnPool(base::UnavailableError(
            why + " before the whole body of the request was there"));
      },
      [](Session& self, Taken taken) {
        self.Discard(std::move(taken.response));
        self.Close();
      });
}

Session::Taken Session::TakeOnPool() {
  for (uint64_t bytes = 0; bytes < kSliceBytes;) {
    if (core_->stopping()) return {};
    const RequestBody::Piece piece = body_->Next(socket_.native_handle());
    switch (piece.kind) {
      case RequestBody::Kind::kBlocked:
        return {.kind = Taken::Kind::kBlocked};
      case RequestBody::Kind::kEnd:
        return FinishOnPool(base::OkStatus());
      case RequestBody::Kind::kBroken: {
        Taken taken = FinishOnPool(base::UnavailableError(
            "the connection broke before the whole body of the request was "
            "there"));
        taken.kind = Taken::Kind::kLost;
        return taken;
      }
      case RequestBody::Kind::kData:
        break;
    }
    base::Status status;
    try {
      status = taker_->OnData(piece.data);
    } catch (...) {
      status = base::InternalError("taking the body failed unexpectedly");
    }
    if (!status.ok()) {
      Taken taken = FinishOnPool(status);
      taken.refused = true;
      return taken;
    }
    bytes += piece.data.size();
  }
  return {.kind = Taken::Kind::kMore};
}

Session::Taken Session::FinishOnPool(const base::Status& status) {
  Taken taken;
  // Also because the stop itself breaks connections.
  if (core_->stopping()) return taken;
  taken.kind = Taken::Kind::kFinished;
  try {
    taken.response = taker_->Finish(status);
  } catch (...) {
    taken.response = PlainAnswer(500, "the request failed unexpectedly");
  }
  taker_.reset();
  return taken;
}

void Session::OnTaken(Taken taken) {
  switch (taken.kind) {
    case Taken::Kind::kMore:
      ReadBody();
      return;
    case Taken::Kind::kBlocked:
      AwaitBody();
      return;
    case Taken::Kind::kLost:
      Discard(std::move(taken.response));
      Close();
      return;
    case Taken::Kind::kFinished:
      break;
  }
  body_.reset();
  if (taken.refused) {
    asked_.keep_alive = false;
    drain_ = true;
  }
  Reply(std::move(taken.response));
}

// ---------------------------------------------------------- the answer

void Session::Reply(Response response) {
  if (response.turns != nullptr) {
    AwaitTurn(std::move(response));
  } else {
    Send(std::move(response));
  }
}

void Session::AwaitTurn(Response response) {
  const std::shared_ptr<exec::Turns> turns = response.turns;
  waiting_ = std::move(response);
  ++wait_;
  Arm(core_->options.turn_timeout, &Session::OnNoTurn);
  WatchForDeparture();
  ticket_ = turns->Ask([weak = weak_from_this(),
                        wait = wait_](std::unique_ptr<exec::Turns::Turn> turn) {
    std::shared_ptr<Session> self = weak.lock();
    if (self == nullptr) return;
    // The loop is there as long as the session is.
    exec::EventLoop& loop = self->core_->loop;
    std::shared_ptr<exec::Turns::Turn> held = std::move(turn);
    loop.Post([self = std::move(self), wait, held = std::move(held)]() mutable {
      self->OnTurn(wait, std::move(held));
    });
  });
}

// A client that ends its side of the connection does not wait any more.
void Session::WatchForDeparture() {
  socket_.async_wait(
      asio::socket_base::wait_read,
      [self = shared_from_this(), wait = wait_](error_code error) {
        if (self->closed_ || !self->waiting_ || self->wait_ != wait) return;
        char byte;
        const ssize_t count = ::recv(self->socket_.native_handle(), &byte, 1,
                                     MSG_PEEK | MSG_DONTWAIT);
        if (error || count == 0 ||
            (count < 0 && errno != EAGAIN && errno != EINTR)) {
          self->Close();
        }
        // Else the next request is there already, and hides the end.
      });
}

std::optional<Response> Session::StopAwaitingTurn() {
  if (!waiting_) return std::nullopt;
  waiting_->turns->Withdraw(ticket_);
  ++wait_;
  return std::exchange(waiting_, std::nullopt);
}

void Session::OnTurn(uint64_t wait, std::shared_ptr<exec::Turns::Turn> turn) {
  if (closed_ || !waiting_ || wait != wait_) return;
  if (turn == nullptr) {
    OnNoTurn();
    return;
  }
  Disarm();
  turn_ = std::move(turn);
  std::optional<Response> response = StopAwaitingTurn();
  if (!response->later) {
    Send(*std::move(response));
    return;
  }
  OnPool(
      [later = std::move(response->later)](Session&) {
        try {
          return later();
        } catch (...) {
          return PlainAnswer(500, "the request failed unexpectedly");
        }
      },
      [](Session& self, Response made) { self.Send(std::move(made)); });
}

void Session::OnNoTurn() {
  Disarm();
  std::optional<Response> response = StopAwaitingTurn();
  Discard(*std::move(response));
  Response busy = PlainAnswer(503, "too many are served at once, try later");
  busy.headers.emplace_back("Retry-After", "1");
  Send(std::move(busy));
}

void Session::Send(Response response) {
  answer_ = Compose(response, asked_);
  asked_.keep_alive = answer_.keep_alive;
  Discard(std::move(response));
  text_sent_ = 0;
  part_ = 0;
  sent_ = 0;
  allowance_ = 0;
  Pace::Limits limits;
  limits.stall = core_->options.send_timeout;
  limits.window = core_->options.min_rate_window;
  if (turn_ != nullptr) limits.min_rate = core_->options.min_rate;
  pace_.emplace(limits);
  SendNext();
}

void Session::SendNext() {
  std::string& text = answer_.text;
  if (text_sent_ < text.size()) {
    uint64_t bytes = text.size() - text_sent_;
    if (answer_.rate == nullptr) {
      bytes = std::min(bytes, kSliceBytes);
    } else if (text_sent_ < answer_.head_bytes) {
      bytes = answer_.head_bytes - text_sent_;
    } else {
      bytes = Metered(bytes);
    }
    if (bytes > 0) WriteText(bytes);
    return;
  }
  std::vector<FilePart>& parts = answer_.parts;
  while (part_ < parts.size() && parts[part_].begin == parts[part_].end)
    ++part_;
  if (part_ < parts.size()) {
    uint64_t bytes =
        std::min(parts[part_].end - parts[part_].begin, kSliceBytes);
    if (answer_.rate != nullptr) bytes = Metered(bytes);
    if (bytes > 0) SendSlice(bytes);
    return;
  }
  if (answer_.maker != nullptr) {
    MakePiece();
  } else {
    OnAnswered();
  }
}

// How many of the `bytes` may be sent now; 0: later, SendNext comes by itself.
uint64_t Session::Metered(uint64_t bytes) {
  if (allowance_ == 0) {
    rate_ = answer_.rate->rate();
    const uint64_t slice = rate_ == 0
                               ? kSliceBytes
                               : std::clamp(rate_ / kSlicesPerSecond,
                                            kLeastSliceBytes, kSliceBytes);
    allowance_ = std::min(bytes, slice);
    const Clock::time_point now = Clock::now();
    const std::chrono::nanoseconds wait = answer_.rate->Take(allowance_, now);
    if (wait.count() > 0) {
      // Far enough: a sum that fits the clock.
      go_on_at_ = now + std::min<std::chrono::nanoseconds>(
                            wait, std::chrono::hours(24 * 365));
      HoldBack();
      return 0;
    }
  }
  return std::min(bytes, allowance_);
}

void Session::HoldBack() {
  const Clock::time_point now = Clock::now();
  if (now >= go_on_at_ || answer_.rate->rate() != rate_) {
    SendNext();
  } else {
    Arm(std::min<Clock::time_point>(go_on_at_, now + kRateLook),
        &Session::HoldBack);
  }
}

void Session::WriteText(uint64_t bytes) {
  AwaitClient();
  socket_.async_write_some(
      asio::buffer(answer_.text.data() + text_sent_, bytes),
      [self = shared_from_this()](error_code error, size_t count) {
        if (self->closed_) return;
        if (error) {
          self->Close();
          return;
        }
        self->text_sent_ += count;
        self->sent_ += count;
        self->allowance_ -= std::min<uint64_t>(self->allowance_, count);
        if (self->ClientCame()) self->SendNext();
      });
}

Session::Sent Session::SendFile(int socket, int file, uint64_t offset,
                                uint64_t bytes) {
  const SigpipeBlock no_sigpipe;
  Sent sent;
  while (sent.bytes < bytes) {
    off_t from = static_cast<off_t>(offset + sent.bytes);
    const ssize_t count = sendfile(socket, file, &from, bytes - sent.bytes);
    if (count > 0) {
      sent.bytes += static_cast<uint64_t>(count);
      continue;
    }
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      sent.blocked = true;
    } else {
      sent.broken = true;  // the peer is gone, or the file is too short
    }
    break;
  }
  return sent;
}

// On the pool, because reading the file may block.
void Session::SendSlice(uint64_t bytes) {
  const uint64_t offset = answer_.parts[part_].begin;
  OnPool(
      [offset, bytes](Session& self) {
        if (self.answer_.check && !self.answer_.check().ok()) {
          return Sent{.broken = true};
        }
        return SendFile(self.socket_.native_handle(), self.answer_.file.get(),
                        offset, bytes);
      },
      [](Session& self, Sent sent) { self.OnSlice(sent); });
}

void Session::OnSlice(Sent sent) {
  answer_.parts[part_].begin += sent.bytes;
  sent_ += sent.bytes;
  allowance_ -= std::min(allowance_, sent.bytes);
  if (sent.broken) {
    Close();
    return;
  }
  if (!sent.blocked) {
    SendNext();
    return;
  }
  AwaitClient();
  socket_.async_wait(asio::socket_base::wait_write,
                     [self = shared_from_this()](error_code error) {
                       if (self->closed_) return;
                       if (error) {
                         self->Close();
                       } else if (self->ClientCame()) {
                         self->SendNext();
                       }
                     });
}

void Session::MakePiece() {
  OnPool(
      [](Session& self) {
        base::Result<std::string> piece = std::string();
        try {
          piece = self.answer_.maker->Next();
        } catch (...) {
          piece = base::InternalError("making the body failed unexpectedly");
        }
        if (!piece.ok() || piece->empty()) self.answer_.maker.reset();
        return piece;
      },
      [](Session& self, base::Result<std::string> piece) {
        self.OnPiece(std::move(piece));
      });
}

void Session::OnPiece(base::Result<std::string> piece) {
  if (!piece.ok()) {
    // Not a regular end, which would look whole.
    if (answer_.chunked) {
      Close();
    } else {
      Reset();
    }
    return;
  }
  const bool ended = answer_.maker == nullptr;
  if (!answer_.chunked) {
    answer_.text = *std::move(piece);
  } else {
    answer_.text = ended ? "0\r\n\r\n" : ChunkOf(*piece);
  }
  answer_.head_bytes = 0;
  text_sent_ = 0;
  SendNext();
}

void Session::OnAnswered() {
  LetGo();
  if (asked_.keep_alive) {
    ReadHead();
    return;
  }
  if (!drain_) {
    Close();
    return;
  }
  error_code ignored;
  socket_.shutdown(asio::socket_base::shutdown_send, ignored);
  Arm(kDrainTimeout, &Session::Close);
  drained_ = 0;
  Drain();
}

void Session::Drain() {
  buffer_.clear();
  socket_.async_read_some(
      buffer_.prepare(kMaxHeadBytes),
      [self = shared_from_this()](error_code error, size_t bytes) {
        if (self->closed_) return;
        self->drained_ += bytes;
        if (error) {
          self->Close();
        } else if (self->drained_ <= kMaxDrainBytes) {
          self->Drain();
        }
        // Else until the timer ends it: closing over unread bytes resets the
        // connection, and the client may not have seen the answer yet.
      });
}

// ------------------------------------------------------------ the pace

void Session::AwaitClient() {
  pace_->Await(Clock::now());
  Arm(pace_->NextLook(), &Session::LookAtPace);
}

bool Session::ClientCame() {
  Disarm();
  const Clock::time_point now = Clock::now();
  const Pace::Verdict verdict = pace_->Look(now, TakenByClient());
  pace_->Pause(now);
  if (verdict == Pace::Verdict::kFine) return true;
  Reset();
  return false;
}

void Session::LookAtPace() {
  if (pace_->Look(Clock::now(), TakenByClient()) == Pace::Verdict::kFine) {
    Arm(pace_->NextLook(), &Session::LookAtPace);
  } else {
    Reset();
  }
}

// Without what lies in the kernel's buffer, which may be megabytes: it takes
// in, and asks for more, in large steps that say little of the client.
uint64_t Session::TakenByClient() {
  int queued = 0;
  if (ioctl(socket_.native_handle(), SIOCOUTQ, &queued) != 0 || queued < 0)
    queued = 0;
  return sent_ - std::min(sent_, static_cast<uint64_t>(queued));
}

}  // namespace bim::http
