// The inside of the server: what its connections share, and one connection.
#pragma once

#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <chrono>
#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "pkg/http/answer.h"
#include "pkg/http/pace.h"
#include "pkg/http/request_body.h"
#include "pkg/http/server.h"

namespace bim::http {

class Session;

// What the server, its sessions and their work on the pool share. Lives until
// the last of them is gone; once the server is destroyed it holds neither
// sockets nor the handler.
class ServerCore : public std::enable_shared_from_this<ServerCore> {
 public:
  using Protocol = boost::asio::generic::stream_protocol;

  ServerCore(exec::EventLoop& loop, exec::WorkerPool& pool, Handler handler,
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
  // On the loop: it waits for a request, or does so no more. While it waits it
  // may be closed for another connection; who waits longest goes first.
  void Wait(Session& session);
  void Unwait(Session& session);

  // Runs `work` on the pool unless the server stops before. False when the pool
  // takes no work any more. Queued work must not own a session.
  template <typename Work>
  bool Submit(Work work) {
    return pool.Submit([self = shared_from_this(), work = std::move(work)] {
      if (!self->Begin()) return;
      work();
      self->End();
    });
  }
  // Has `thing`, whose destructor may block, destroyed on the pool, or by Stop.
  void Discard(std::shared_ptr<void> thing);

  const Handler& handler() const { return handler_; }
  bool stopping();

  void SessionBorn();
  void SessionGone();

  exec::EventLoop& loop;
  exec::WorkerPool& pool;
  const Server::Options options;

 private:
  using Acceptor = boost::asio::basic_socket_acceptor<Protocol>;

  bool Full() const { return sessions_.size() >= options.max_connections; }
  void Accept();
  void OnAcceptable(boost::system::error_code error);
  // False: nobody can be closed for another connection just now.
  bool MakeRoom();
  void Pause();
  bool Begin();
  void End();
  void DestroyDiscarded();

  // On the loop only.
  std::optional<Acceptor> acceptor_;
  std::optional<boost::asio::steady_timer> pause_;
  std::unordered_set<std::shared_ptr<Session>> sessions_;
  std::list<Session*> waiting_;  // for a request, the longest first
  bool accepting_ = false;       // or about to, or closing one for another

  Handler handler_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  size_t running_ = 0;  // work on the pool that has begun
  size_t alive_ = 0;    // sessions not yet destroyed
  std::vector<std::shared_ptr<void>> discarded_;
};

// Counts a session until its last member is destroyed: declared first in it.
class AliveMark {
 public:
  explicit AliveMark(std::shared_ptr<ServerCore> core)
      : core_(std::move(core)) {
    core_->SessionBorn();
  }
  ~AliveMark() { core_->SessionGone(); }
  AliveMark(const AliveMark&) = delete;
  AliveMark& operator=(const AliveMark&) = delete;

 private:
  const std::shared_ptr<ServerCore> core_;
};

// One connection. Everything on the loop, except what OnPool runs: while that
// is so (busy_) it has the socket's descriptor, the body, its taker and the
// answer for itself, and the loop leaves them alone.
//
// A request goes: ReadHead, OnHead, the handler (pool), OnHandled; then, with a
// taker, ReadBody in turns with AwaitBody until FinishBody; then Reply, perhaps
// AwaitTurn, and Send, which goes through SendNext until OnAnswered.
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(std::shared_ptr<ServerCore> core,
          ServerCore::Protocol::socket socket);
  ~Session();

  void Start();
  // Ends all: at once, or when the pool is done.
  void Close();
  // While it waits for a request: whether one, or more of one, is there and was
  // not looked at yet.
  bool HasUnread();

  // Of ServerCore: where it stands among those that wait.
  std::optional<std::list<Session*>::iterator> place;
  bool had_request = false;  // of ServerCore, too

 private:
  using Clock = Pace::Clock;
  using Work = void (Session::*)();
  struct Sent {
    uint64_t bytes = 0;
    bool blocked = false;  // the socket takes no more for now
    bool broken = false;
  };
  // What became of a request's body for now.
  struct Taken {
    enum class Kind { kMore, kBlocked, kFinished, kLost };
    Kind kind = Kind::kLost;
    bool refused = false;  // by the taker
    Response response;     // of kFinished
  };

  // The request.
  void ReadHead();
  void OnHead(boost::system::error_code error);
  void Refuse(int status, std::string text);
  void OnHandled(Response response);

  // Its body.
  void SendContinue();
  void ReadBody();
  void AwaitBody();
  void OnAwaited(boost::system::error_code error, void (Session::*next)());
  void OnSilent();
  void LoseBody(const std::string& why);
  void OnTaken(Taken taken);
  Taken TakeOnPool();
  Taken FinishOnPool(const base::Status& status);

  // The answer.
  void Reply(Response response);
  void AwaitTurn(Response response);
  void WatchForDeparture();
  void OnTurn(uint64_t wait, std::shared_ptr<exec::Turns::Turn> turn);
  void OnNoTurn();
  std::optional<Response> StopAwaitingTurn();
  void Send(Response response);
  void SendNext();
  uint64_t Metered(uint64_t bytes);
  void HoldBack();
  void WriteText(uint64_t bytes);
  void SendSlice(uint64_t bytes);
  void OnSlice(Sent sent);
  void MakePiece();
  void OnPiece(base::Result<std::string> piece);
  void OnAnswered();
  void Drain();

  // Whether the client takes the answer fast enough.
  void AwaitClient();
  // False: the connection was closed.
  bool ClientCame();
  void LookAtPace();
  uint64_t TakenByClient();

  // One timer, for whatever is awaited just now.
  void Arm(Clock::time_point when, Work work);
  void Arm(std::chrono::milliseconds timeout, Work work) {
    Arm(Clock::now() + timeout, work);
  }
  void Disarm();
  // Closes by a reset: what the client did not take does not stay in the
  // kernel's buffers, and a body without a length does not look whole.
  void Reset();
  void End();
  // Gives up all that belongs to the request.
  void LetGo();
  void Discard(Response response);
  // Runs `work` on the pool, then `then` with its result on the loop, unless
  // the connection is closed meanwhile.
  template <typename OnThePool, typename Then>
  void OnPool(OnThePool work, Then then);
  static Sent SendFile(int socket, int file, uint64_t offset, uint64_t bytes);

  const AliveMark alive_;
  const std::shared_ptr<ServerCore> core_;
  ServerCore::Protocol::socket socket_;
  boost::asio::steady_timer timer_;
  uint64_t timer_round_ = 0;  // what was armed before means nothing
  boost::beast::flat_buffer buffer_;
  bool closed_ = false;
  bool busy_ = false;

  // The request.
  std::optional<RequestBody::Parser> parser_;
  Asked asked_;
  bool takes_body_ = false;  // PUT, PATCH or POST
  bool has_body_ = false;
  bool continue_ = false;  // it expects "100 Continue"
  bool drain_ = false;     // before closing, let the rest of the request come
  size_t drained_ = 0;

  // Its body.
  std::unique_ptr<BodyTaker> taker_;
  std::optional<RequestBody> body_;
  bool awaiting_body_ = false;

  // The answer, while it waits for a turn.
  std::optional<Response> waiting_;
  uint64_t wait_ = 0;  // counts them: turns that come for others are dropped
  uint64_t ticket_ = 0;
  // The answer, while it is sent.
  std::shared_ptr<exec::Turns::Turn> turn_;
  Answer answer_;
  std::optional<Pace> pace_;
  size_t text_sent_ = 0;
  size_t part_ = 0;
  uint64_t sent_ = 0;  // all bytes of it
  // Of the rate: taken from it and not sent yet.
  uint64_t allowance_ = 0;
  uint64_t rate_ = 0;  // what it was then
  Clock::time_point go_on_at_;
};

}  // namespace bim::http
