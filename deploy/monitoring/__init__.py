"""What an operator watches: Grafana dashboards and Prometheus alert rules, made from the metrics in the code."""
