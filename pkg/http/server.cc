#include "pkg/http/server.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <strings.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/empty_body.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/fields.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/status.hpp>
#include <cerrno>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <string_view>
#include <unordered_set>

#include "pkg/http/range.h"
#include "pkg/http/sigpipe.h"
#include "pkg/http/target.h"

namespace bim::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
using boost::system::error_code;
using Protocol = asio::generic::stream_protocol;
using Acceptor = asio::basic_socket_acceptor<Protocol>;
using std::chrono::milliseconds;

constexpr size_t kMaxHeadBytes = 16 * 1024;
// One turn of a body on the pool: bounded, so that connections take turns.
constexpr uint64_t kSliceBytes = 1024 * 1024;
// How long, and how many bytes, a refused request may still arrive before the
// connection is closed over it: closing at once could lose the answer.
constexpr milliseconds kDrainTimeout{2000};
constexpr size_t kMaxDrainBytes = 1024 * 1024;
constexpr milliseconds kAcceptPause{100};

bool EqualsIgnoringCase(std::string_view a, std::string_view b) {
  return a.size() == b.size() && strncasecmp(a.data(), b.data(), a.size()) == 0;
}

std::string HttpDate() {
  const time_t now = time(nullptr);
  tm utc{};
  gmtime_r(&now, &utc);
  char text[64];
  const size_t size =
      strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &utc);
  return std::string(text, size);
}

std::string OneLine(std::string text) {
  std::ranges::replace_if(
      text, [](char c) { return c == '\r' || c == '\n' || c == '\0'; }, ' ');
  return text;
}

bool IsServersOwn(std::string_view name) {
  constexpr std::array<std::string_view, 5> kOwn = {
      "Content-Length", "Content-Type", "Connection", "Transfer-Encoding",
      "Date"};
  return std::ranges::any_of(kOwn, [&](std::string_view own) {
    return EqualsIgnoringCase(own, name);
  });
}

// Empty when the handler gave no such header.
std::string_view HeaderOf(const Response& response, std::string_view name) {
  for (const auto& [key, value] : response.headers) {
    if (EqualsIgnoringCase(key, name)) return value;
  }
  return {};
}

// RFC 9110 13.1.5: an entity tag is compared strongly, a date exactly.
bool IfRangeHolds(const Response& response, std::string_view if_range) {
  if (if_range.empty()) return true;
  if (if_range.starts_with("W/")) return false;
  const std::string_view name =
      if_range.starts_with('"') ? "ETag" : "Last-Modified";
  return HeaderOf(response, name) == if_range;
}

Response PlainAnswer(int status, std::string text) {
  Response response;
  response.status = status;
  response.body = std::move(text) + "\n";
  return response;
}

class Session;

// What the server, its sessions and their work on the pool share. Lives until
// the last of them is gone; once the server is destroyed it holds neither
// sockets nor the handler.
class Core : public std::enable_shared_from_this<Core> {
 public:
  Core(exec::EventLoop& loop, exec::WorkerPool& pool, Handler handler,
       Server::Options options)
      : loop(loop),
        pool(pool),
        options(options),
        handler_(std::move(handler)) {}

  base::Status Listen(base::UniqueFd listener);
  // Not on the loop. When it returns nothing of the server runs any more.
  void Stop();

  // On the loop. Makes room for another connection.
  void Remove(const std::shared_ptr<Session>& session);

  // Runs `work` on the pool unless the server stops before. False when the pool
  // takes no work any more. Queued work must not own a session.
  template <typename Work>
  bool Submit(Work work);
  const Handler& handler() const { return handler_; }

  void SessionBorn();
  void SessionGone();

  exec::EventLoop& loop;
  exec::WorkerPool& pool;
  const Server::Options options;

 private:
  void Accept();
  void OnAccept(error_code error, Protocol::socket socket);
  bool Begin();
  void End();

  // On the loop only.
  std::optional<Acceptor> acceptor_;
  std::optional<asio::steady_timer> pause_;
  std::unordered_set<std::shared_ptr<Session>> sessions_;
  bool accepting_ = false;

  Handler handler_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  size_t running_ = 0;  // work on the pool that has begun
  size_t alive_ = 0;    // sessions not yet destroyed
};

// Counts a session until its last member is destroyed: declared first in it.
class AliveMark {
 public:
  explicit AliveMark(std::shared_ptr<Core> core) : core_(std::move(core)) {
    core_->SessionBorn();
  }
  ~AliveMark() { core_->SessionGone(); }
  AliveMark(const AliveMark&) = delete;
  AliveMark& operator=(const AliveMark&) = delete;

 private:
  const std::shared_ptr<Core> core_;
};

// One connection. Everything on the loop, except what is submitted to the pool:
// that touches only what it was given and the two descriptors, which stay open
// while busy_.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(std::shared_ptr<Core> core, Protocol::socket socket)
      : alive_(core),
        core_(std::move(core)),
        socket_(std::move(socket)),
        timer_(core_->loop.context()) {}

  void Start();
  // Ends all: at once, or when the pool is done with the descriptors.
  void Close();

 private:
  using Parser = beast::http::request_parser<beast::http::empty_body>;
  struct Sent {
    uint64_t bytes = 0;
    bool blocked = false;  // the socket takes no more for now
    bool broken = false;
  };

  void ReadHead();
  void OnHead(error_code error);
  void CallHandler(Request request);
  void Answer(Response response);
  void Refuse(int status, std::string text);
  void Write();
  void OnWritten();
  void SendSlice();
  void OnSlice(Sent sent);
  void OnAnswered();
  void Drain();

  void Arm(milliseconds timeout);
  static Sent SendFile(int socket, int file, uint64_t offset, uint64_t bytes);

  const AliveMark alive_;
  const std::shared_ptr<Core> core_;
  Protocol::socket socket_;
  asio::steady_timer timer_;
  beast::flat_buffer buffer_{kMaxHeadBytes};
  std::optional<Parser> parser_;
  bool closed_ = false;
  bool busy_ = false;  // the pool has work of this session

  // The request being answered.
  bool head_only_ = false;
  bool keep_alive_ = false;
  bool drain_ = false;       // before closing, let the rest of the request come
  bool old_client_ = false;  // HTTP/1.0
  std::string range_;
  std::string if_range_;
  // The answer.
  std::string text_;  // head, and a body from memory
  size_t text_sent_ = 0;
  base::UniqueFd file_;
  uint64_t file_next_ = 0;
  uint64_t file_end_ = 0;
  bool sending_ = false;
  size_t drained_ = 0;
};

// ---------------------------------------------------------------- Core

base::Status Core::Listen(base::UniqueFd listener) {
  int listening = 0;
  socklen_t size = sizeof(listening);
  if (getsockopt(listener.get(), SOL_SOCKET, SO_ACCEPTCONN, &listening,
                 &size) != 0 ||
      listening == 0) {
    return base::InvalidArgumentError(
        "the HTTP server needs a listening stream socket");
  }
  sockaddr_storage address{};
  size = sizeof(address);
  if (getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address),
                  &size) != 0)
    return base::ErrnoError(errno, "asking the address of the HTTP listener");
  acceptor_.emplace(loop.context());
  pause_.emplace(loop.context());
  error_code error;
  acceptor_->assign(Protocol(address.ss_family, 0), listener.get(), error);
  if (error) {
    return base::ErrnoError(error.value(),
                            "giving the HTTP listener to the loop");
  }
  (void)listener.Release();
  acceptor_->native_non_blocking(true, error);
  loop.Post([self = shared_from_this()] { self->Accept(); });
  return base::OkStatus();
}

void Core::Accept() {
  if (!acceptor_ || accepting_ || sessions_.size() >= options.max_connections)
    return;
  accepting_ = true;
  acceptor_->async_accept(
      [self = shared_from_this()](error_code error, Protocol::socket socket) {
        self->OnAccept(error, std::move(socket));
      });
}

void Core::OnAccept(error_code error, Protocol::socket socket) {
  accepting_ = false;
  if (!acceptor_) return;
  if (!error) {
    auto session =
        std::make_shared<Session>(shared_from_this(), std::move(socket));
    sessions_.insert(session);
    session->Start();
    Accept();
    return;
  }
  if (error == asio::error::connection_aborted) {
    Accept();
    return;
  }
  // Out of descriptors or memory: the listener stays readable, so look again
  // only after a pause.
  accepting_ = true;
  pause_->expires_after(kAcceptPause);
  pause_->async_wait([self = shared_from_this()](error_code) {
    self->accepting_ = false;
    self->Accept();
  });
}

void Core::Remove(const std::shared_ptr<Session>& session) {
  if (sessions_.erase(session) > 0) Accept();
}

template <typename Work>
bool Core::Submit(Work work) {
  return pool.Submit([self = shared_from_this(), work = std::move(work)] {
    if (!self->Begin()) return;
    work();
    self->End();
  });
}

bool Core::Begin() {
  std::lock_guard lock(mutex_);
  if (stopping_) return false;
  ++running_;
  return true;
}

void Core::End() {
  std::lock_guard lock(mutex_);
  --running_;
  changed_.notify_all();
}

void Core::SessionBorn() {
  std::lock_guard lock(mutex_);
  ++alive_;
}

void Core::SessionGone() {
  std::lock_guard lock(mutex_);
  --alive_;
  changed_.notify_all();
}

void Core::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;  // work that has not begun never will
  }
  // Accept no more, and let no client hold up what runs.
  loop.Post([self = shared_from_this()] {
    self->acceptor_.reset();
    self->pause_.reset();
    const auto sessions = self->sessions_;
    for (const auto& session : sessions) session->Close();
  });
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return running_ == 0; });
  }
  // What ran has posted its result before; nobody uses a descriptor now.
  loop.Post([self = shared_from_this()] { self->sessions_.clear(); });
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return alive_ == 0; });
  }
  handler_ = nullptr;
}

// ------------------------------------------------------------- Session

void Session::Start() {
  error_code ignored;
  socket_.native_non_blocking(true, ignored);
  const int on = 1;  // fails on unix sockets, where it is not needed
  setsockopt(socket_.native_handle(), IPPROTO_TCP, TCP_NODELAY, &on,
             sizeof(on));
  ReadHead();
}

void Session::Close() {
  if (!closed_) {
    closed_ = true;
    timer_.cancel();
    // Not close: the pool may be about to use the number. This breaks what it
    // does and what waits here.
    ::shutdown(socket_.native_handle(), SHUT_RDWR);
  }
  if (busy_) return;  // what ends busy_ comes here again
  error_code ignored;
  socket_.close(ignored);
  file_.Reset();
  core_->Remove(shared_from_this());
}

void Session::Arm(milliseconds timeout) {
  timer_.expires_after(timeout);
  timer_.async_wait([self = shared_from_this()](error_code error) {
    if (error || self->closed_) return;
    // The timer may have been set anew after this call was queued.
    if (self->timer_.expiry() > std::chrono::steady_clock::now()) return;
    // What the client does not take would stay in the kernel's buffers long
    // after a plain close.
    const linger reset{1, 0};
    if (self->sending_) {
      setsockopt(self->socket_.native_handle(), SOL_SOCKET, SO_LINGER, &reset,
                 sizeof(reset));
    }
    self->Close();
  });
}

void Session::ReadHead() {
  parser_.emplace();
  parser_->header_limit(kMaxHeadBytes);
  parser_->body_limit(boost::none);  // bodies are refused, whatever their size
  keep_alive_ = head_only_ = drain_ = old_client_ = false;
  Arm(core_->options.head_timeout);
  beast::http::async_read_header(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](error_code error, size_t) {
        self->OnHead(error);
      });
}

void Session::OnHead(error_code error) {
  if (closed_) return;
  timer_.cancel();
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
  keep_alive_ = parser_->keep_alive();
  old_client_ = head.version() < 11;
  head_only_ = head.method() == beast::http::verb::head;
  const bool has_body = parser_->chunked() ||
                        head.count(Name::transfer_encoding) > 0 ||
                        parser_->content_length().value_or(0) > 0;
  if (head.method() != beast::http::verb::get && !head_only_) {
    drain_ = has_body;
    if (has_body) keep_alive_ = false;
    Response refusal = PlainAnswer(405, "only GET and HEAD are served here");
    refusal.headers.emplace_back("Allow", "GET, HEAD");
    Answer(std::move(refusal));
    return;
  }
  if (has_body) {
    Refuse(413, "a request with a body is not taken here");
    return;
  }
  if (!old_client_ && head.count(Name::host) != 1) {
    Refuse(400, "the request needs one Host header");
    return;
  }
  std::optional<Target> target =
      ParseTarget(std::string_view(head.target().data(), head.target().size()));
  if (!target) {
    Refuse(400, "the request's path is unreadable");
    return;
  }
  const auto field = [&](Name name) {
    return head.count(name) == 1 ? std::string(head[name]) : std::string();
  };
  range_ = field(Name::range);
  if_range_ = field(Name::if_range);
  Request request;
  request.method = head_only_ ? "HEAD" : "GET";
  request.path = std::move(target->path);
  request.query = std::move(target->query);
  request.range = range_;
  CallHandler(std::move(request));
}

void Session::CallHandler(Request request) {
  busy_ = true;
  const bool submitted =
      core_->Submit([weak = weak_from_this(), request = std::move(request)] {
        std::shared_ptr<Session> self = weak.lock();
        if (self == nullptr) return;
        auto response = std::make_shared<Response>();
        try {
          *response = self->core_->handler()(request);
        } catch (...) {
          *response = PlainAnswer(500, "the request failed unexpectedly");
        }
        exec::EventLoop& loop = self->core_->loop;
        // Moved along, so that the session ends on the loop.
        loop.Post([self = std::move(self), response] {
          self->busy_ = false;
          if (self->closed_) {
            self->Close();
          } else {
            self->Answer(std::move(*response));
          }
        });
      });
  if (submitted) return;
  busy_ = false;
  Close();  // the daemon is going down
}

void Session::Refuse(int status, std::string text) {
  keep_alive_ = false;
  drain_ = true;
  Answer(PlainAnswer(status, std::move(text)));
}

void Session::Answer(Response response) {
  if (response.status < 200 || response.status > 599)
    response = PlainAnswer(500, "the handler gave no valid status");
  std::string extra;
  uint64_t length = response.body.size();
  if (response.file) {
    const uint64_t size = response.file_size;
    extra += "Accept-Ranges: bytes\r\n";
    ByteRange range;
    if (response.status == 200 && !head_only_ &&
        IfRangeHolds(response, if_range_))
      range = SelectRange(range_, size);
    file_next_ = 0;
    file_end_ = size;
    if (range.kind == ByteRange::Kind::kPart) {
      response.status = 206;
      file_next_ = range.begin;
      file_end_ = range.end;
      extra += "Content-Range: bytes " + std::to_string(range.begin) + "-" +
               std::to_string(range.end - 1) + "/" + std::to_string(size) +
               "\r\n";
    } else if (range.kind == ByteRange::Kind::kUnsatisfiable) {
      response.status = 416;
      file_end_ = 0;
      extra += "Content-Range: bytes */" + std::to_string(size) + "\r\n";
    }
    file_ = std::move(response.file);
    response.body.clear();
    length = file_end_ - file_next_;
  }
  const bool without_body = response.status == 204 || response.status == 304;
  if (head_only_ || without_body) {
    file_.Reset();
    file_next_ = file_end_ = 0;
    response.body.clear();
  }

  const auto reason = beast::http::obsolete_reason(
      static_cast<beast::http::status>(response.status));
  text_ = "HTTP/1.1 " + std::to_string(response.status) + " ";
  text_.append(reason.data(), reason.size());
  text_ += "\r\nDate: " + HttpDate() + "\r\n";
  if (!without_body) {
    text_ += "Content-Type: " + OneLine(response.content_type) + "\r\n";
    text_ += "Content-Length: " + std::to_string(length) + "\r\n";
  }
  text_ += extra;
  for (const auto& [name, value] : response.headers) {
    if (!IsServersOwn(name))
      text_ += OneLine(name) + ": " + OneLine(value) + "\r\n";
  }
  if (!keep_alive_) {
    text_ += "Connection: close\r\n";
  } else if (old_client_) {
    text_ += "Connection: keep-alive\r\n";
  }
  text_ += "\r\n";
  text_ += response.body;
  text_sent_ = 0;
  sending_ = true;
  Arm(core_->options.send_timeout);
  Write();
}

void Session::Write() {
  socket_.async_write_some(
      asio::buffer(text_.data() + text_sent_, text_.size() - text_sent_),
      [self = shared_from_this()](error_code error, size_t bytes) {
        if (self->closed_) return;
        if (error) {
          self->Close();
          return;
        }
        self->text_sent_ += bytes;
        self->Arm(self->core_->options.send_timeout);
        if (self->text_sent_ < self->text_.size()) {
          self->Write();
        } else {
          self->OnWritten();
        }
      });
}

void Session::OnWritten() {
  text_.clear();
  if (file_next_ < file_end_) {
    SendSlice();
  } else {
    OnAnswered();
  }
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
void Session::SendSlice() {
  busy_ = true;
  const int socket = socket_.native_handle();
  const int file = file_.get();
  const uint64_t offset = file_next_;
  const uint64_t bytes = std::min(kSliceBytes, file_end_ - file_next_);
  const bool submitted =
      core_->Submit([weak = weak_from_this(), socket, file, offset, bytes] {
        // Holding the session keeps both descriptors open.
        std::shared_ptr<Session> self = weak.lock();
        if (self == nullptr) return;
        const Sent sent = SendFile(socket, file, offset, bytes);
        exec::EventLoop& loop = self->core_->loop;
        loop.Post([self = std::move(self), sent] { self->OnSlice(sent); });
      });
  if (submitted) return;
  busy_ = false;
  Close();
}

void Session::OnSlice(Sent sent) {
  busy_ = false;
  file_next_ += sent.bytes;
  if (closed_ || sent.broken) {
    Close();
    return;
  }
  if (sent.bytes > 0) Arm(core_->options.send_timeout);
  if (file_next_ == file_end_) {
    OnAnswered();
  } else if (!sent.blocked) {
    SendSlice();
  } else {
    socket_.async_wait(asio::socket_base::wait_write,
                       [self = shared_from_this()](error_code error) {
                         if (self->closed_) return;
                         if (error) {
                           self->Close();
                         } else {
                           self->SendSlice();
                         }
                       });
  }
}

void Session::OnAnswered() {
  sending_ = false;
  file_.Reset();
  if (keep_alive_) {
    ReadHead();
    return;
  }
  if (!drain_) {
    Close();
    return;
  }
  error_code ignored;
  socket_.shutdown(asio::socket_base::shutdown_send, ignored);
  Arm(kDrainTimeout);
  drained_ = 0;
  text_.resize(kMaxHeadBytes);
  Drain();
}

void Session::Drain() {
  socket_.async_read_some(
      asio::buffer(text_),
      [self = shared_from_this()](error_code error, size_t bytes) {
        if (self->closed_) return;
        self->drained_ += bytes;
        if (error || self->drained_ > kMaxDrainBytes) {
          self->Close();
        } else {
          self->Drain();
        }
      });
}

class ServerImpl : public Server {
 public:
  explicit ServerImpl(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  ~ServerImpl() override {
    BIM_CHECK(!core_->loop.InLoop());
    core_->Stop();
  }

 private:
  const std::shared_ptr<Core> core_;
};

}  // namespace

base::Result<std::unique_ptr<Server>> Server::Start(exec::EventLoop& loop,
                                                    exec::WorkerPool& pool,
                                                    base::UniqueFd listener,
                                                    Handler handler,
                                                    Options options) {
  if (options.max_connections == 0)
    return base::InvalidArgumentError("max_connections must be at least 1");
  auto core = std::make_shared<Core>(loop, pool, std::move(handler), options);
  BIM_RETURN_IF_ERROR(core->Listen(std::move(listener)));
  return std::unique_ptr<Server>(std::make_unique<ServerImpl>(std::move(core)));
}

}  // namespace bim::http
