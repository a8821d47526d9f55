"""Series: tables of sensors, from a file to scores, forecasts and reports."""
