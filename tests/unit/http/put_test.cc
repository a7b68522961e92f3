// Put(): uploads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>

#include "tests/unit/http/server_fixture.h"

namespace bim::http {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::Contains;
using testing::HasSubstr;
using testing::Not;
using testing::Pair;

BodyReader From(const std::string& text, size_t step = 100'000) {
  return [&text, step, at = size_t{0}](
             std::span<std::byte> buffer) mutable -> base::Result<size_t> {
    const size_t size = std::min({step, buffer.size(), text.size() - at});
    std::memcpy(buffer.data(), text.data() + at, size);
    at += size;
    return size;
  };
}

base::Result<size_t> Endless(std::span<std::byte> buffer) {
  std::memset(buffer.data(), 'x', buffer.size());
  return buffer.size();
}

base::Result<size_t> NotAsked(std::span<std::byte>) {
  ADD_FAILURE() << "the body was asked for";
  return size_t{0};
}

PutRequest RequestTo(const ScriptedServer& server) {
  PutRequest request;
  request.url = server.Url("/image?key=SECRET");
  return request;
}

void ExpectFailure(const PutResult& result, Failure failure, base::Code code,
                   const std::string& text) {
  EXPECT_EQ(result.outcome.failure, failure)
      << result.outcome.status.ToString();
  EXPECT_EQ(result.outcome.status.code(), code)
      << result.outcome.status.ToString();
  EXPECT_THAT(result.outcome.status.message(), HasSubstr(text));
  EXPECT_THAT(result.outcome.status.message(), Not(HasSubstr("SECRET")));
}

TEST(HttpPut, BodyOfKnownLength) {
  const std::string body = Pattern(1'000'000);
  std::string got;
  ScriptedServer server([&](Conn& conn, const std::string&) {
    got = conn.ReadBytes(body.size());
    conn.Send(
        "HTTP/1.1 201 Created\r\nX-One: 1\r\nContent-Length: 4\r\n"
        "Retry-After: 3\r\n\r\nbody");
  });
  PutRequest request = RequestTo(server);
  request.headers = {"X-Token: SECRET", "X-Empty:"};
  request.content_length = body.size();
  const PutResult result = Put(request, From(body), {});
  EXPECT_EQ(result.outcome.failure, Failure::kNone)
      << result.outcome.status.ToString();
  EXPECT_EQ(result.outcome.http_status, 201);
  EXPECT_EQ(result.outcome.body_bytes, 4u);
  EXPECT_EQ(result.outcome.retry_after, std::chrono::seconds(3));
  EXPECT_EQ(result.status, 201);
  EXPECT_EQ(result.body, "body");
  EXPECT_THAT(result.fields, Contains(Pair("x-one", "1")));
  EXPECT_TRUE(got == body);
  const std::string head = server.requests().at(0);
  EXPECT_THAT(head, HasSubstr("PUT /image?key=SECRET HTTP/1.1\r\n"));
  EXPECT_THAT(head, HasSubstr("Content-Length: 1000000\r\n"));
  EXPECT_THAT(head, HasSubstr("X-Token: SECRET\r\n"));
  EXPECT_THAT(head, HasSubstr("X-Empty:\r\n"));
  EXPECT_THAT(head, Not(HasSubstr("Expect")));
  EXPECT_THAT(head, Not(HasSubstr("Transfer-Encoding")));
}

TEST(HttpPut, NoBody) {
  ScriptedServer server("HTTP/1.1 204 None\r\n\r\n");
  PutRequest request = RequestTo(server);
  request.content_length = 0;
  const PutResult result = Put(request, NotAsked, {});
  EXPECT_EQ(result.outcome.failure, Failure::kNone)
      << result.outcome.status.ToString();
  EXPECT_EQ(result.status, 204);
  EXPECT_THAT(server.requests().at(0), HasSubstr("Content-Length: 0\r\n"));
}

TEST(HttpPut, Head) {
  ScriptedServer server([](Conn& conn, const std::string&) {
    conn.Send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX: y\r\n\r\n");
    conn.AwaitClose();
  });
  PutRequest request = RequestTo(server);
  request.method = "HEAD";
  const PutResult result = Put(request, NotAsked, {});
  EXPECT_EQ(result.outcome.failure, Failure::kNone)
      << result.outcome.status.ToString();
  EXPECT_THAT(result.fields, Contains(Pair("content-length", "1000")));
  EXPECT_EQ(result.body, "");
  EXPECT_THAT(server.requests().at(0), testing::StartsWith("HEAD /image"));
}

TEST(HttpPut, WithoutBodies) {
  for (const std::string method : {"GET", "DELETE"}) {
    ScriptedServer server([](Conn& conn, const std::string&) {
      conn.Send("HTTP/1.1 404 No\r\nContent-Length: 4\r\nX: y\r\n\r\nlost");
      conn.AwaitClose();
    });
    PutRequest request = RequestTo(server);
    request.method = method;
    request.headers = {"X-Token: SECRET"};
    const PutResult result = Put(request, NotAsked, {});
    EXPECT_EQ(result.outcome.failure, Failure::kNone)
        << result.outcome.status.ToString();
    EXPECT_EQ(result.status, 404);
    EXPECT_EQ(result.body, "lost");
    EXPECT_THAT(result.fields, Contains(Pair("x", "y")));
    const std::string head = server.requests().at(0);
    EXPECT_THAT(
        head, testing::StartsWith(method + " /image?key=SECRET HTTP/1.1\r\n"));
    EXPECT_THAT(head, HasSubstr("X-Token: SECRET\r\n"));
    EXPECT_THAT(head, Not(HasSubstr("Content-Length")));
    EXPECT_THAT(head, Not(HasSubstr("Transfer-Encoding")));
  }
}

TEST(HttpPut, BodiesInMemory) {
  for (const std::string method : {"PUT", "PATCH", "POST"}) {
    for (const size_t size : {0, 5, 1'000'000}) {
      const std::string body = Pattern(size);
      std::string got;
      ScriptedServer server([&](Conn& conn, const std::string&) {
        got = conn.ReadBytes(size);
        conn.Send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
      });
      PutRequest request = RequestTo(server);
      request.method = method;
      request.bytes = std::as_bytes(std::span(body));
      request.content_length = 77;  // of a reader
      const PutResult result = Put(request, {}, {});
      EXPECT_EQ(result.outcome.failure, Failure::kNone)
          << result.outcome.status.ToString();
      EXPECT_EQ(result.body, "ok");
      EXPECT_TRUE(got == body);
      const std::string head = server.requests().at(0);
      EXPECT_THAT(head, testing::StartsWith(method + " /image"));
      EXPECT_THAT(
          head, HasSubstr("Content-Length: " + std::to_string(size) + "\r\n"));
      EXPECT_THAT(head, Not(HasSubstr("Content-Type")));
      EXPECT_THAT(head, Not(HasSubstr("Expect")));
    }
  }
}

TEST(HttpPut, AnyStatusIsAnAnswer) {
  for (const int status : {200, 302, 404, 409, 500, 503}) {
    ScriptedServer server([&](Conn& conn, const std::string&) {
      conn.ReadBytes(5);
      conn.Send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 " +
                std::to_string(status) +
                " X\r\nLocation: /there\r\nContent-Length: 2\r\n\r\nok");
    });
    PutRequest request = RequestTo(server);
    request.content_length = 5;
    const PutResult result = Put(request, From("hello"), {});
    EXPECT_EQ(result.outcome.failure, Failure::kNone)
        << result.outcome.status.ToString();
    EXPECT_EQ(result.status, status);
    EXPECT_EQ(result.body, "ok");
    EXPECT_EQ(server.requests().size(), 1u);
  }
}

TEST(HttpPut, BodiesOfAnswers) {
  const std::string big = Pattern(200'000);
  for (const auto& [answer, body] :
       std::vector<std::pair<std::string, std::string>>{
           {"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "hello"},
           {"\r\nuntil the end", "until the end"},
           {"Content-Length: 200000\r\n\r\n" + big, big.substr(0, 65536)}}) {
    ScriptedServer server([&](Conn& conn, const std::string&) {
      conn.ReadBytes(5);
      conn.Send("HTTP/1.1 200 OK\r\n" + answer);
    });
    PutRequest request = RequestTo(server);
    request.content_length = 5;
    const PutResult result = Put(request, From("hello"), {});
    EXPECT_EQ(result.outcome.failure, Failure::kNone)
        << result.outcome.status.ToString();
    EXPECT_TRUE(result.body == body);
  }
}

TEST(HttpPut, AnswersThatAreWrong) {
  const struct {
    const char* answer;
    Failure failure;
    base::Code code;
    const char* text;
  } cases[] = {
      {"", Failure::kTransient, base::Code::kUnavailable,
       "waiting for an answer"},
      {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", Failure::kTransient,
       base::Code::kUnavailable, "ended early"},
      {"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nx", Failure::kPermanent,
       base::Code::kFailedPrecondition, "Content-Length"},
      {"SSH-2.0-OpenSSH_9.2\r\n", Failure::kPermanent,
       base::Code::kFailedPrecondition, "not readable as HTTP"},
  };
  for (const auto& [answer, failure, code, text] : cases) {
    ScriptedServer server([&](Conn& conn, const std::string&) {
      conn.ReadBytes(5);
      conn.Send(answer);
    });
    PutRequest request = RequestTo(server);
    request.content_length = 5;
    ExpectFailure(Put(request, From("hello"), {}), failure, code, text);
  }
}

TEST(HttpPut, ReaderThatFails) {
  for (const bool chunked : {false, true}) {
    std::string got;
    auto server = std::make_unique<ScriptedServer>(
        [&](Conn& conn, const std::string&) { got = conn.ReadAll(); });
    PutRequest request = RequestTo(*server);
    if (!chunked) request.content_length = 1000;
    int calls = 0;
    const PutResult result =
        Put(request,
            [&](std::span<std::byte> buffer) -> base::Result<size_t> {
              if (++calls == 3) return base::DataLossError("disk");
              buffer[0] = std::byte{'x'};
              return size_t{1};
            },
            {});
    EXPECT_EQ(result.outcome.failure, Failure::kRefused);
    EXPECT_EQ(result.outcome.status, base::DataLossError("disk"));
    server.reset();  // its thread is done with `got`
    // Never what a server could take for the whole body.
    EXPECT_THAT(got, Not(HasSubstr("0\r\n\r\n")));
  }
}

TEST(HttpPut, ReaderThatEndsEarly) {
  ScriptedServer server(
      [&](Conn& conn, const std::string&) { conn.AwaitClose(); });
  PutRequest request = RequestTo(server);
  request.content_length = 6;
  const PutResult result = Put(request, From("hello"), {});
  EXPECT_EQ(result.outcome.failure, Failure::kRefused);
  EXPECT_THAT(result.outcome.status.message(),
              HasSubstr("ended after 5 of 6 bytes"));
}

TEST(HttpPut, AnswerBeforeTheBodyWasSent) {
  for (const char* answer :
       {"HTTP/1.1 409 No\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n"
        "0\r\n\r\n"}) {
    for (const bool chunked : {false, true}) {
      ScriptedServer server([&](Conn& conn, const std::string&) {
        conn.ReadBytes(1000);
        conn.Send(answer);
        // Reads no more; until the client closes.
        pollfd closed{conn.fd(), POLLRDHUP, 0};
        ::poll(&closed, 1, 10'000);
      });
      PutRequest request = RequestTo(server);
      if (!chunked) request.content_length = 1ull << 40;
      const auto begin = steady_clock::now();
      const PutResult result = Put(request, Endless, {});
      EXPECT_EQ(result.outcome.failure, Failure::kNone)
          << result.outcome.status.ToString();
      EXPECT_EQ(result.body, "no");
      EXPECT_LT(steady_clock::now() - begin, milliseconds(5000));
    }
  }
}

TEST(HttpPut, NeverTaken) {
  for (const bool dribbles : {false, true}) {
    ScriptedServer server([&](Conn& conn, const std::string&) {
      pollfd closed{conn.fd(), POLLRDHUP, 0};
      while (::poll(&closed, 1, 20) == 0) {
        if (dribbles) conn.ReadBytes(1);
      }
    });
    PutRequest request = RequestTo(server);
    request.deadlines.stall = milliseconds(dribbles ? 60'000 : 300);
    request.deadlines.min_rate = 1 << 30;
    request.deadlines.min_rate_window = milliseconds(dribbles ? 300 : 60'000);
    ExpectFailure(Put(request, Endless, {}), Failure::kTransient,
                  base::Code::kDeadlineExceeded,
                  dribbles ? "bytes a second over"
                           : "no byte of the body was taken for 300 ms");
  }
}

TEST(HttpPut, NeverAnswered) {
  ScriptedServer server(
      [&](Conn& conn, const std::string&) { conn.AwaitClose(); });
  for (const size_t length : {0, 5}) {
    PutRequest request = RequestTo(server);
    request.content_length = length;
    request.deadlines.first_byte = milliseconds(200);
    ExpectFailure(Put(request, From("hello"), {}), Failure::kTransient,
                  base::Code::kDeadlineExceeded,
                  "waiting for an answer: no complete answer within 200 ms");
  }
}

TEST(HttpPut, TimeInTheReaderIsNoStall) {
  ScriptedServer server([&](Conn& conn, const std::string&) {
    conn.ReadBytes(3);
    conn.Send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
  });
  PutRequest request = RequestTo(server);
  request.content_length = 3;
  request.deadlines.stall = milliseconds(100);
  request.deadlines.first_byte = milliseconds(5000);
  const PutResult result =
      Put(request,
          [](std::span<std::byte> buffer) -> base::Result<size_t> {
            std::this_thread::sleep_for(milliseconds(200));
            buffer[0] = std::byte{'x'};
            return size_t{1};
          },
          {});
  EXPECT_EQ(result.outcome.failure, Failure::kNone)
      << result.outcome.status.ToString();
}

TEST(HttpPut, Stops) {
  // While it is stuck in sending, and while it waits for the answer.
  for (const bool sending : {true, false}) {
    std::stop_source stop;
    ScriptedServer server([&](Conn& conn, const std::string&) {
      conn.ReadBytes(5);
      stop.request_stop();
      pollfd closed{conn.fd(), POLLRDHUP, 0};
      ::poll(&closed, 1, 10'000);
    });
    PutRequest request = RequestTo(server);
    if (!sending) request.content_length = 5;
    const auto begin = steady_clock::now();
    ExpectFailure(Put(request, Endless, stop.get_token()), Failure::kCancelled,
                  base::Code::kCancelled, "stopped");
    EXPECT_LT(steady_clock::now() - begin, milliseconds(2000));
  }
}

TEST(HttpPut, ConnectionThatBreaks) {
  ScriptedServer server([&](Conn& conn, const std::string&) {
    conn.ReadBytes(1000);
    conn.ResetAtClose();
  });
  const PutResult result = Put(RequestTo(server), Endless, {});
  EXPECT_EQ(result.outcome.failure, Failure::kTransient);
  EXPECT_EQ(result.outcome.status.code(), base::Code::kUnavailable);
  const uint16_t port = ListenLocal().second;  // closed again at once
  PutRequest request;
  request.url = "http://127.0.0.1:" + std::to_string(port) + "/x?SECRET";
  ExpectFailure(Put(request, Endless, {}), Failure::kTransient,
                base::Code::kUnavailable, "connecting: ");
}

TEST(HttpPut, BadRequestsNeverLeave) {
  ScriptedServer server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
  std::vector<PutRequest> bad(10, RequestTo(server));
  bad[0].url = "ftp://host/x";
  bad[1].url = "http://user:SECRET@127.0.0.1/";
  bad[2].headers = {"X: y\r\nInjected: SECRET"};
  bad[3].headers = {"content-length: 5"};
  bad[4].headers = {"Transfer-Encoding: gzip"};
  bad[5].headers = {"Expect: 100-continue"};
  bad[6].method = "TRACE";
  bad[7].method = "get";
  for (size_t i = 8; i < bad.size(); ++i) {
    bad[i].method = i == 8 ? "GET" : "DELETE";
    bad[i].bytes = std::as_bytes(std::span("body"));
  }
  ExpectFailure(Put(RequestTo(server), {}, {}), Failure::kPermanent,
                base::Code::kInvalidArgument, "nothing gives the body");
  for (const PutRequest& request : bad) {
    ExpectFailure(Put(request, NotAsked, {}), Failure::kPermanent,
                  base::Code::kInvalidArgument, "cannot send to ");
  }
  EXPECT_TRUE(server.requests().empty());
}

TEST(HttpPut, GoesThroughNoProxy) {
  ScriptedServer proxy("HTTP/1.1 500 Proxy\r\nContent-Length: 0\r\n\r\n");
  ScriptedServer server("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
  const char* before = getenv("http_proxy");
  const std::string kept = before == nullptr ? "" : before;
  setenv("http_proxy", proxy.Url("").c_str(), 1);
  PutRequest request = RequestTo(server);
  request.content_length = 0;
  const PutResult result = Put(request, NotAsked, {});
  if (before == nullptr) {
    unsetenv("http_proxy");
  } else {
    setenv("http_proxy", kept.c_str(), 1);
  }
  EXPECT_EQ(result.status, 200);
}

// ---------------------------------------------------- our own server

class HttpPutServer : public ServerTest {
 protected:
  class Taker : public BodyTaker {
   public:
    Taker(std::string& body, size_t limit) : body_(body), limit_(limit) {}
    base::Status OnData(std::span<const std::byte> data) override {
      body_.append(reinterpret_cast<const char*>(data.data()), data.size());
      if (body_.size() > limit_) return base::ResourceExhaustedError("full");
      return base::OkStatus();
    }
    Response Finish(const base::Status& status) override {
      Response response;
      response.status = status.ok() ? 201 : 507;
      response.body = status.message();
      return response;
    }

   private:
    std::string& body_;
    const size_t limit_;
  };
  void StartTaking(size_t limit) {
    Start([this, limit](const Request& request) {
      Response response;
      method_ = request.method;
      if (request.path == "/taken")
        response.taker = std::make_unique<Taker>(got_, limit);
      else
        response.status = 409;
      return response;
    });
  }
  std::string method_;
  std::string got_;
};

TEST_F(HttpPutServer, WholeBodies) {
  StartTaking(1 << 30);
  const std::string body = Pattern(20'000'000);
  for (const bool chunked : {false, true}) {
    got_.clear();
    PutRequest request;
    request.url = Url("/taken");
    request.method = chunked ? "PATCH" : "PUT";
    if (!chunked) request.content_length = body.size();
    const PutResult result = Put(request, From(body, 1 << 20), {});
    EXPECT_EQ(result.status, 201) << result.outcome.status.ToString();
    EXPECT_TRUE(got_ == body);
    EXPECT_EQ(method_, request.method);
  }
}

TEST_F(HttpPutServer, RefusalsReachTheSender) {
  StartTaking(5'000'000);
  for (const char* path : {"/taken", "/refused"}) {
    for (const bool chunked : {false, true}) {
      got_.clear();
      PutRequest request;
      request.url = Url(path);
      if (!chunked) request.content_length = 1ull << 40;
      const PutResult result = Put(request, Endless, {});
      EXPECT_EQ(result.outcome.failure, Failure::kNone)
          << result.outcome.status.ToString();
      EXPECT_EQ(result.status, path == std::string("/taken") ? 507 : 409);
    }
  }
}

}  // namespace
}  // namespace bim::http
