// Answers that are more than a text or a file: parts, made bodies, turns,
// rates.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "tests/unit/http/server_fixture.h"

namespace bim::http {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::EndsWith;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr uint64_t kHuge = 1ull << 40;
constexpr std::chrono::seconds kDeadline{10};

class ListMaker : public BodyMaker {
 public:
  ListMaker(std::vector<base::Result<std::string>> pieces,
            std::atomic<int>& alive)
      : pieces_(std::move(pieces)), alive_(alive) {
    ++alive_;
  }
  ~ListMaker() override {
    --alive_;
    alive_.notify_all();
  }
  base::Result<std::string> Next() override {
    EXPECT_LE(next_, pieces_.size());
    if (next_ == pieces_.size()) return ++next_, std::string();
    return pieces_[next_++];
  }

 private:
  const std::vector<base::Result<std::string>> pieces_;
  size_t next_ = 0;
  std::atomic<int>& alive_;
};

// Makes the same piece for ever; `on_next` comes before each.
class EndlessMaker : public BodyMaker {
 public:
  EndlessMaker(std::atomic<int>& alive, std::function<void()> on_next)
      : alive_(alive), on_next_(std::move(on_next)) {
    ++alive_;
  }
  ~EndlessMaker() override {
    --alive_;
    alive_.notify_all();
  }
  base::Result<std::string> Next() override {
    if (on_next_) on_next_();
    return std::string(100'000, 'x');
  }

 private:
  std::atomic<int>& alive_;
  const std::function<void()> on_next_;
};

class HttpServerAnswer : public ServerTest {
 protected:
  // Answers what `make` fills in.
  void StartWith(std::function<void(const Request&, Response&)> make,
                 Server::Options options = {}) {
    Start(
        [make = std::move(make)](const Request& request) {
          Response response;
          make(request, response);
          return response;
        },
        options);
  }
  bool AwaitNoMaker() {
    const auto until = steady_clock::now() + kDeadline;
    while (makers_ > 0 && steady_clock::now() < until)
      std::this_thread::yield();
    return makers_ == 0;
  }

  std::atomic<int> makers_{0};
};

// --------------------------------------------------------------- parts

TEST_F(HttpServerAnswer, TextAndPartsOfAFile) {
  const std::string content = Pattern(3 << 20);
  StartWith([&](const Request&, Response& response) {
    response.body = "head:";
    response.file = FileOf(content);
    response.file_size = content.size();
    response.parts = {{10, 20}, {5, 5}, {1000, 2'500'000}, {0, 3}};
  });
  const std::string body = "head:" + content.substr(10, 10) +
                           content.substr(1000, 2'499'000) +
                           content.substr(0, 3);
  // A range does not matter.
  const std::string answer = Fetch("GET", "/", "Range: bytes=0-1\r\n");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(
      answer,
      HasSubstr("Content-Length: " + std::to_string(body.size()) + "\r\n"));
  EXPECT_THAT(answer, Not(HasSubstr("Accept-Ranges")));
  EXPECT_TRUE(answer.ends_with("\r\n\r\n" + body));
  const std::string head = Fetch("HEAD", "/");
  EXPECT_THAT(head, HasSubstr("Content-Length: " + std::to_string(body.size()) +
                              "\r\n"));
  EXPECT_THAT(head, EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerAnswer, PartsThatCannotBe) {
  StartWith([&](const Request& request, Response& response) {
    response.body = "text";
    if (request.path != "/none") response.file = FileOf("0123456789");
    response.file_size = 10;
    response.parts = {{0, 1}};
    if (request.path == "/backward") response.parts = {{5, 4}};
    if (request.path == "/huge") response.parts = {{0, ~0ull}};
    if (request.path == "/sum")
      response.parts = {{0, ~0ull >> 1}, {0, ~0ull >> 1}, {0, 3}};
    if (request.path == "/beyond") response.parts = {{5, 15}};
  });
  for (const char* path : {"/none", "/backward", "/huge", "/sum"})
    EXPECT_THAT(Fetch("GET", path), StartsWith("HTTP/1.1 500 ")) << path;
  const std::string broken = Fetch("GET", "/beyond");
  EXPECT_THAT(broken, HasSubstr("Content-Length: 14\r\n"));
  EXPECT_THAT(broken, EndsWith("\r\n\r\ntext56789"));  // and closed
}

// --------------------------------------------------------------- maker

TEST_F(HttpServerAnswer, MadeBodyIsChunked) {
  const std::string big = Pattern(2'000'000);
  StartWith([&](const Request&, Response& response) {
    response.maker = std::make_unique<ListMaker>(
        std::vector<base::Result<std::string>>{std::string("hello "), big,
                                               std::string("!")},
        makers_);
    response.body = "not used";
  });
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send("GET / HTTP/1.1\r\nHost: h\r\nRange: bytes=0-1\r\n\r\n");
  const std::string head = conn.ReadHead();
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(head, HasSubstr("Transfer-Encoding: chunked\r\n"));
  EXPECT_THAT(head, Not(HasSubstr("Content-Length")));
  const std::string chunks =
      "6\r\nhello \r\n1e8480\r\n" + big + "\r\n1\r\n!\r\n0\r\n\r\n";
  EXPECT_TRUE(conn.ReadBytes(chunks.size()) == chunks);
  // And the connection is kept.
  conn.Send("HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(conn.ReadHead(), HasSubstr("Transfer-Encoding: chunked\r\n"));
  EXPECT_EQ(conn.ReadAll(), "");
  // As our client sees it.
  RecordingSink sink;
  EXPECT_EQ(Get(DirectRequest(Url("/")), sink, {}).failure, Failure::kNone);
  EXPECT_EQ(sink.bytes, big.size() + 7);
  // An old client.
  const std::string old =
      Exchange("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_THAT(old, HasSubstr("Connection: close\r\n"));
  EXPECT_THAT(old, Not(HasSubstr("chunked")));
  EXPECT_TRUE(old.ends_with("\r\n\r\nhello " + big + "!"));
  EXPECT_TRUE(AwaitNoMaker());
}

TEST_F(HttpServerAnswer, EmptyMadeBody) {
  StartWith([&](const Request&, Response& response) {
    response.maker = std::make_unique<ListMaker>(
        std::vector<base::Result<std::string>>{}, makers_);
  });
  EXPECT_THAT(Fetch("GET", "/"), EndsWith("\r\n\r\n0\r\n\r\n"));
  EXPECT_THAT(Exchange("GET / HTTP/1.0\r\n\r\n"), EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerAnswer, MakerThatFailsBreaksTheConnection) {
  StartWith([&](const Request& request, Response& response) {
    if (request.path == "/throw") {
      response.maker = std::make_unique<EndlessMaker>(makers_, [] { throw 1; });
      return;
    }
    response.maker = std::make_unique<ListMaker>(
        std::vector<base::Result<std::string>>{
            std::string("hello"), base::UnavailableError("disk gone")},
        makers_);
  });
  for (const char* path : {"/fail", "/throw"}) {
    RecordingSink sink;
    EXPECT_EQ(Get(DirectRequest(Url(path)), sink, {}).failure,
              Failure::kTransient);
    EXPECT_EQ(sink.body, path == std::string("/fail") ? "hello" : "");
  }
  // To an old client only a reset says that the body is not whole.
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send("GET /fail HTTP/1.0\r\n\r\n");
  pollfd broken{fd.get(), POLLRDHUP, 0};
  EXPECT_EQ(::poll(&broken, 1, 10'000), 1);
  EXPECT_NE(broken.revents & (POLLERR | POLLHUP), 0);
  EXPECT_TRUE(AwaitNoMaker());
}

TEST_F(HttpServerAnswer, MakerOfAClientThatLeaves) {
  StartWith([&](const Request&, Response& response) {
    response.maker = std::make_unique<EndlessMaker>(makers_, nullptr);
  });
  {
    const base::UniqueFd fd = ConnectLocal(port_);
    Conn conn(fd.get());
    conn.Send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    EXPECT_EQ(conn.ReadBytes(1 << 20).size(), 1u << 20);
  }
  EXPECT_TRUE(AwaitNoMaker());
}

TEST_F(HttpServerAnswer, StopWhileMaking) {
  std::atomic<bool> release{false};
  StartWith([&](const Request& request, Response& response) {
    response.maker = std::make_unique<EndlessMaker>(
        makers_, [&, wait = request.path == "/wait"] {
          if (wait) release.wait(false);
        });
  });
  std::vector<base::UniqueFd> fds;
  for (const char* path : {"/wait", "/", "/"}) {
    fds.push_back(ConnectLocal(port_));
    Conn conn(fds.back().get());
    conn.Send("GET " + std::string(path) + " HTTP/1.1\r\nHost: h\r\n\r\n");
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  }
  std::jthread releaser([&] {
    Conn(fds[0].get()).AwaitClose();
    release = true;
    release.notify_all();
  });
  server_.reset();
  EXPECT_EQ(makers_, 0);
}

TEST_F(HttpServerAnswer, TimeInTheMakerIsNotTheClients) {
  const auto turns = exec::Turns::Make(1);
  std::atomic<int> made{0};
  StartWith(
      [&](const Request&, Response& response) {
        response.turns = turns;
        response.maker = std::make_unique<EndlessMaker>(makers_, [&] {
          std::this_thread::sleep_for(milliseconds(100));
          if (++made == 5) throw 1;
        });
      },
      {.send_timeout = milliseconds(50),
       .min_rate = 1 << 30,
       .min_rate_window = milliseconds(50)});
  RecordingSink sink;
  Get(DirectRequest(Url("/")), sink, {});
  EXPECT_EQ(sink.bytes, 400'000u);
}

// --------------------------------------------------------------- turns

// Asks for `path` and leaves the connection open.
base::UniqueFd Ask(uint16_t port, const std::string& path = "/") {
  base::UniqueFd fd = ConnectLocal(port);
  Conn(fd.get()).Send("GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n");
  return fd;
}

// Whether an answer comes at once, or within a while in which it must not.
bool Answered(const base::UniqueFd& fd, milliseconds wait) {
  pollfd readable{fd.get(), POLLIN, 0};
  return ::poll(&readable, 1, static_cast<int>(wait.count())) == 1;
}

TEST_F(HttpServerAnswer, EightConnectionsWithThreeTurns) {
  const auto turns = exec::Turns::Make(3);
  StartWith([&](const Request&, Response& response) {
    response.turns = turns;
    response.file = HugeFile(kHuge);
    response.file_size = kHuge;
  });
  // In this order: the next asks when the one before is in the queue.
  std::vector<base::UniqueFd> fds;
  for (int i = 0; i < 8; ++i) fds.push_back(Ask(port_));
  const auto count = [&] {
    size_t answered = 0;
    for (const base::UniqueFd& fd : fds)
      answered += fd && Answered(fd, milliseconds(0)) ? 1 : 0;
    return answered;
  };
  const auto await = [&](size_t wanted) {
    const auto until = steady_clock::now() + kDeadline;
    while (count() < wanted && steady_clock::now() < until)
      std::this_thread::sleep_for(milliseconds(1));
    return count();
  };
  EXPECT_EQ(await(3), 3u);
  for (size_t left = 8; left > 3; --left) {
    // None of those that wait.
    for (const base::UniqueFd& fd : fds) {
      if (fd && !Answered(fd, milliseconds(0))) {
        EXPECT_FALSE(Answered(fd, milliseconds(30)));
        break;
      }
    }
    // One of those that are served leaves.
    for (base::UniqueFd& fd : fds) {
      if (fd && Answered(fd, milliseconds(0))) {
        fd.Reset();
        break;
      }
    }
    EXPECT_EQ(await(3), 3u);
  }
  turns->SetLimit(8);
  EXPECT_EQ(await(3), 3u);
}

TEST_F(HttpServerAnswer, KeptConnectionGivesItsTurnBack) {
  const auto turns = exec::Turns::Make(1);
  const std::string content = Pattern(3 << 20);
  StartWith([&](const Request&, Response& response) {
    response.turns = turns;
    response.file = FileOf(content);
    response.file_size = content.size();
  });
  const base::UniqueFd first = ConnectLocal(port_);
  const base::UniqueFd second = ConnectLocal(port_);
  Conn conns[] = {Conn(first.get()), Conn(second.get())};
  for (int i = 0; i < 6; ++i) {
    Conn& conn = conns[i % 2];
    conn.Send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
    EXPECT_TRUE(conn.ReadBytes(content.size()) == content);
  }
}

TEST_F(HttpServerAnswer, NoTurnInTime) {
  const auto turns = exec::Turns::Make(0);
  StartWith(
      [&](const Request& request, Response& response) {
        response.turns = turns;
        response.body = "served";
        if (request.path == "/maker")
          response.maker = std::make_unique<EndlessMaker>(makers_, nullptr);
      },
      {.turn_timeout = milliseconds(100)});
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send("GET /maker HTTP/1.1\r\nHost: h\r\n\r\n");
  const std::string head = conn.ReadHead();
  EXPECT_THAT(head, StartsWith("HTTP/1.1 503 "));
  EXPECT_THAT(head, HasSubstr("Retry-After: 1\r\n"));
  EXPECT_TRUE(AwaitNoMaker());
  // What it did not wait for any more does not come to it, and the connection
  // is kept.
  turns->SetLimit(1);
  EXPECT_EQ(conn.ReadBytes(39), "too many are served at once, try later\n");
  for (int i = 0; i < 2; ++i) {
    conn.Send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
    EXPECT_EQ(conn.ReadBytes(6), "served");
  }
}

TEST_F(HttpServerAnswer, TooManyWait) {
  const auto turns = exec::Turns::Make(0);
  for (int i = 0; i < 1024; ++i)
    turns->Ask([](std::unique_ptr<exec::Turns::Turn>) {});
  StartWith(
      [&](const Request&, Response& response) { response.turns = turns; });
  EXPECT_THAT(Fetch("GET", "/"), StartsWith("HTTP/1.1 503 "));
}

TEST_F(HttpServerAnswer, ClientsThatLeaveTheQueue) {
  const auto turns = exec::Turns::Make(0);
  std::atomic<int> asked{0};
  StartWith(
      [&](const Request&, Response& response) {
        response.turns = turns;
        ++asked;
      },
      {.max_connections = 4});
  for (int round = 0; round < 3; ++round) {
    std::vector<base::UniqueFd> fds;
    for (int i = 0; i < 4; ++i) fds.push_back(Ask(port_));
    while (asked < 4 * (round + 1)) std::this_thread::yield();
    // By a reset, by a close, and after the next request was sent.
    Conn(fds[0].get()).ResetAtClose();
    Conn(fds[1].get()).ResetAtClose();
  }
  // Their places are free again, long before the timeout, and no turn is lost.
  turns->SetLimit(1);
  EXPECT_THAT(Fetch("GET", "/"), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(Fetch("GET", "/"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(HttpServerAnswer, NextRequestMayWaitBehindATurn) {
  const auto turns = exec::Turns::Make(0);
  std::atomic<int> asked{0};
  StartWith([&](const Request& request, Response& response) {
    response.turns = turns;
    response.body = request.path;
    ++asked;
  });
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n");
  while (asked < 1) std::this_thread::yield();
  conn.Send("GET /2 HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_FALSE(Answered(fd, milliseconds(50)));
  turns->SetLimit(1);
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  EXPECT_EQ(conn.ReadBytes(2), "/1");
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  EXPECT_EQ(conn.ReadBytes(2), "/2");
}

TEST_F(HttpServerAnswer, WhatIsMadeLaterIsMadeWithATurn) {
  const auto turns = exec::Turns::Make(0);
  std::atomic<int> asked{0}, made{0};
  StartWith([&](const Request& request, Response& response) {
    response.turns = turns;
    response.body = "not this";
    response.later = [&, path = request.path] {
      ++made;
      if (path == "/throws") throw std::runtime_error("x");
      return Response{.status = 203, .body = path};
    };
    ++asked;
  });
  const base::UniqueFd fd = ConnectLocal(port_);
  Conn conn(fd.get());
  conn.Send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\n");
  while (asked < 1) std::this_thread::yield();
  EXPECT_FALSE(Answered(fd, milliseconds(50)));
  EXPECT_EQ(made, 0);
  turns->SetLimit(1);
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 203 "));
  EXPECT_EQ(conn.ReadBytes(2), "/1");
  EXPECT_THAT(Fetch("GET", "/throws"), StartsWith("HTTP/1.1 500 "));
  EXPECT_THAT(Fetch("GET", "/2"), StartsWith("HTTP/1.1 203 "));
  EXPECT_EQ(made, 3);
}

TEST_F(HttpServerAnswer, StopWhileMakingItLater) {
  const auto turns = exec::Turns::Make(2);
  std::atomic<int> begun{0};
  std::atomic<bool> go_on{false};
  StartWith([&](const Request&, Response& response) {
    response.turns = turns;
    response.later = [&] {
      ++begun;
      while (!go_on) std::this_thread::yield();
      return Response{.body = "too late"};
    };
  });
  const base::UniqueFd first = Ask(port_), second = Ask(port_);
  while (begun < 2) std::this_thread::yield();
  Conn(first.get()).ResetAtClose();
  std::jthread stop([&] { server_.reset(); });
  std::this_thread::sleep_for(milliseconds(20));
  go_on = true;
}

TEST_F(HttpServerAnswer, AFileThatFailsItsCheckIsCutOff) {
  std::atomic<int> left{3};
  StartWith([&](const Request&, Response& response) {
    response.file = HugeFile(kHuge);
    response.file_size = kHuge;
    response.check = [&] {
      return left-- > 0 ? base::OkStatus() : base::AbortedError("changed");
    };
  });
  const base::UniqueFd fd = Ask(port_);
  Conn conn(fd.get());
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  const std::string all = conn.ReadBytes(kHuge);
  EXPECT_GT(all.size(), 0u);
  EXPECT_LE(all.size(), 3u << 20) << "three slices at most";
}

TEST_F(HttpServerAnswer, StopWhileWaitingForATurn) {
  const auto turns = exec::Turns::Make(0);
  std::atomic<int> asked{0};
  StartWith([&](const Request&, Response& response) {
    response.turns = turns;
    response.maker = std::make_unique<EndlessMaker>(makers_, nullptr);
    ++asked;
  });
  std::vector<base::UniqueFd> fds;
  for (int i = 0; i < 3; ++i) fds.push_back(Ask(port_));
  while (asked < 3) std::this_thread::yield();
  server_.reset();
  EXPECT_EQ(makers_, 0);
  // Turns outlive the server; what comes now comes to nobody.
  turns->SetLimit(1);
  bool had = false;
  turns->Ask(
      [&](std::unique_ptr<exec::Turns::Turn> turn) { had = turn != nullptr; });
  EXPECT_TRUE(had);
}

TEST_F(HttpServerAnswer, StopWhileTurnsChangeHands) {
  const auto turns = exec::Turns::Make(2);
  const std::string content = Pattern(1 << 20);
  StartWith([&](const Request&, Response& response) {
    response.turns = turns;
    response.file = FileOf(content);
    response.file_size = content.size();
  });
  std::vector<base::UniqueFd> fds;
  for (int i = 0; i < 6; ++i) fds.push_back(ConnectLocal(port_));
  std::atomic<int> served{0};
  std::vector<std::jthread> clients;
  for (const base::UniqueFd& fd : fds) {
    clients.emplace_back([&, fd = fd.get()] {
      Conn conn(fd);
      while (conn.Send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")) {
        if (conn.ReadHead().empty()) break;
        if (conn.ReadBytes(content.size()).size() < content.size()) break;
        ++served;
        served.notify_all();
      }
    });
  }
  for (int seen; (seen = served) < 20;) served.wait(seen);
  server_.reset();
}

TEST_F(HttpServerAnswer, SlowClientLosesItsTurn) {
  const auto turns = exec::Turns::Make(1);
  StartWith(
      [&](const Request& request, Response& response) {
        if (request.path != "/free") response.turns = turns;
        response.file = HugeFile(kHuge);
        response.file_size = kHuge;
      },
      {.min_rate = 4 << 20, .min_rate_window = milliseconds(300)});
  // A little now and then: no stall, but dribbling.
  base::UniqueFd slow = Ask(port_);
  base::UniqueFd free = Ask(port_, "/free");
  Conn conn(slow.get());
  Conn unhurried(free.get());
  EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(unhurried.ReadHead(), StartsWith("HTTP/1.1 200 "));
  const base::UniqueFd next = Ask(port_);
  pollfd broken{slow.get(), POLLRDHUP, 0};
  const auto until = steady_clock::now() + kDeadline;
  while (::poll(&broken, 1, 10) == 0 && steady_clock::now() < until)
    conn.ReadBytes(1000);
  EXPECT_NE(broken.revents & (POLLERR | POLLHUP), 0);
  EXPECT_TRUE(Answered(next, kDeadline));
  // Without a turn nobody is in a hurry.
  pollfd alive{free.get(), POLLRDHUP, 0};
  EXPECT_EQ(::poll(&alive, 1, 0), 0);
}

// ---------------------------------------------------------------- rate

TEST_F(HttpServerAnswer, BodiesPassThroughTheRate) {
  const auto rate = std::make_shared<exec::RateLimiter>(2'000'000);
  const std::string content = Pattern(600'000);
  StartWith([&](const Request& request, Response& response) {
    response.rate = rate;
    if (request.path == "/file") {
      response.file = FileOf(content);
      response.file_size = content.size();
    } else if (request.path == "/text") {
      response.body = content;
    } else if (request.path == "/maker") {
      response.maker = std::make_unique<ListMaker>(
          std::vector<base::Result<std::string>>{content}, makers_);
    }
  });
  for (const char* path : {"/file", "/text", "/maker"}) {
    // What the bucket holds after a pause passes at once.
    rate->Take(500'000, exec::RateLimiter::Clock::now());
    const auto begin = steady_clock::now();
    const base::UniqueFd fd = Ask(port_, path);
    Conn conn(fd.get());
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
    EXPECT_LT(steady_clock::now() - begin, milliseconds(100)) << path;
    size_t got = 0;
    size_t largest = 0;
    while (got < content.size()) {
      const std::string piece = conn.Read();
      if (piece.empty()) break;
      got += piece.size();
      largest = std::max(largest, piece.size());
    }
    EXPECT_GE(got, content.size());
    const auto took = steady_clock::now() - begin;
    EXPECT_GT(took, milliseconds(280)) << path;
    EXPECT_LT(took, milliseconds(3000)) << path;
  }
  // Nothing of it is metered.
  const auto begin = steady_clock::now();
  for (int i = 0; i < 3; ++i)
    EXPECT_THAT(Fetch("HEAD", "/file"), StartsWith("HTTP/1.1 200 "));
  EXPECT_LT(steady_clock::now() - begin, milliseconds(1000));
}

TEST_F(HttpServerAnswer, RateIsSharedAndCanBeChanged) {
  const auto rate = std::make_shared<exec::RateLimiter>(1);
  const std::string content = Pattern(3 << 20);
  StartWith([&](const Request&, Response& response) {
    response.rate = rate;
    response.file = FileOf(content);
    response.file_size = content.size();
  });
  const base::UniqueFd fds[] = {Ask(port_), Ask(port_)};
  Conn conns[] = {Conn(fds[0].get()), Conn(fds[1].get())};
  for (Conn& conn : conns)
    EXPECT_THAT(conn.ReadHead(), StartsWith("HTTP/1.1 200 "));
  EXPECT_FALSE(Answered(fds[0], milliseconds(50)));
  const auto begin = steady_clock::now();
  rate->SetRate(0);
  for (Conn& conn : conns)
    EXPECT_TRUE(conn.ReadBytes(content.size()) == content);
  EXPECT_LT(steady_clock::now() - begin, milliseconds(3000));
}

TEST_F(HttpServerAnswer, WaitingForTheRateIsNotTheClients) {
  const auto turns = exec::Turns::Make(1);
  const auto rate = std::make_shared<exec::RateLimiter>(20'000);
  StartWith(
      [&](const Request&, Response& response) {
        response.turns = turns;
        response.rate = rate;
        response.body = std::string(16'000, 'x');
      },
      {.send_timeout = milliseconds(50),
       .min_rate = 1 << 30,
       .min_rate_window = milliseconds(50)});
  RecordingSink sink;
  EXPECT_EQ(Get(DirectRequest(Url("/")), sink, {}).failure, Failure::kNone);
  EXPECT_EQ(sink.bytes, 16'000u);
}

TEST_F(HttpServerAnswer, StopWhileHeldBack) {
  const auto rate = std::make_shared<exec::RateLimiter>(1);
  StartWith([&](const Request&, Response& response) {
    response.rate = rate;
    response.body = "text";
  });
  const base::UniqueFd fd = Ask(port_);
  EXPECT_THAT(Conn(fd.get()).ReadHead(), StartsWith("HTTP/1.1 200 "));
  server_.reset();
}

}  // namespace
}  // namespace bim::http
