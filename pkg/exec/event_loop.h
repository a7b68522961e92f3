// One Asio loop on one thread: sockets, timers and signals of the process.
//
// Nothing that runs here may block: file access, DNS, hashing and waiting go
// to a WorkerPool. Thread-safety: Post and context() from any thread.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <thread>

namespace bim::exec {

class EventLoop {
 public:
  // Starts the thread.
  EventLoop();
  // Stops and joins. What was posted and has not run is destroyed unrun. Must
  // not be called on the loop's own thread.
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  boost::asio::io_context& context() { return context_; }
  void Post(std::function<void()> work);
  // True on the loop's own thread.
  bool InLoop() const;

 private:
  boost::asio::io_context context_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type>
      guard_;
  std::thread thread_;
};

}  // namespace bim::exec
